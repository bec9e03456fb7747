"""Colours that are the same on every dashboard."""

OUTCOMES = {
    "ok": "green",
    "overloaded": "orange",
    "invalid": "blue",
    "not_found": "super-light-blue",
    "cancelled": "purple",
    "aborted_receive": "light-purple",
    "unauthenticated": "light-blue",
    "denied": "dark-blue",
    "unsupported": "dark-purple",
    "deadline": "yellow",
    "unavailable": "dark-red",
    "aborted": "dark-yellow",
    "internal": "red",
}
STATES = {"READY": "green", "LOADING": "blue", "UNLOADING": "yellow", "UNAVAILABLE": "red"}
DECISIONS = {
    "promoted": "green",
    "kept": "blue",
    "stored": "light-blue",
    "stopped": "text",
    "worse": "orange",
    "wrong_output": "red",
    "failed": "dark-red",
}
# In the order in which they happen, which is also the order of stacking.
STAGES = {
    "decode": "super-light-blue",
    "queue": "orange",
    "batch": "yellow",
    "input": "light-blue",
    "compute": "green",
    "handover": "purple",
    "output": "blue",
    "encode": "dark-blue",
}
WINDOWS = {"5m": "red", "30m": "orange", "1h": "yellow", "6h": "blue", "3d": "purple"}
"""Windows of the burn rate: each alert uses a short and a long one."""
BURN_RATES = ((1.0, "yellow"), (6.0, "orange"), (14.4, "red"))
"""The rate that exactly uses up the budget, and the two rates that page."""
