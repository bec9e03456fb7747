"""Generates load for inferd bench."""
