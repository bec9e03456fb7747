"""Decides what runs next. No clock, no loop, no future: time is an argument."""
