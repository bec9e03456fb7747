"""The change from one candidate to another: if a change has paid once, it may pay again."""

from inferd.axes import AXES, QUANTITIES
from inferd.tuning.candidates import Candidate

# For each axis that changed: its name, and the direction or, for values without an order, the new value.
Delta = tuple[tuple[str, object], ...]


def delta_between(before: Candidate, after: Candidate) -> Delta:
    """The change from ``before`` to ``after``."""
    changes: list[tuple[str, object]] = []
    for axis in AXES:
        old, new = getattr(before, axis), getattr(after, axis)
        if old != new:
            changes.append((axis, (1 if new > old else -1) if axis in QUANTITIES else new))
    return tuple(changes)


def delta_text(delta: Delta) -> str:
    """``delta`` for people."""
    return ", ".join(_axis_text(axis, to) for axis, to in delta)


def _axis_text(axis: str, to: object) -> str:
    if axis == "batch":
        return "a larger batch" if to == 1 else "a smaller batch"
    if axis in QUANTITIES:
        return f"{'more' if to == 1 else 'fewer'} {axis}"
    return f"{axis.replace('_', ' ')} {'on' if to is True else 'off' if to is False else to or 'left to the device'}"
