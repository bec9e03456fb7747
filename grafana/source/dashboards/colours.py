"""What has the same colour on every dashboard."""

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
# In the order they happen, so that they are stacked in it.
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
"""Windows of the burn rate: the alerts look at one short and one long of them each."""
BURN_RATES = ((1.0, "yellow"), (6.0, "orange"), (14.4, "red"))
"""As fast as the budget lasts, and the two rates at which a page is sent."""
