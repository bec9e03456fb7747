"""Decides whether versions and devices are healthy, and what to do where they are not; knows only its arguments."""
