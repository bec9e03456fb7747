"""Decides whether versions and devices are healthy, and what to do if not; pure functions of their arguments."""
