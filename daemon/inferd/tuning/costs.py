"""What a look will cost, foreseen from what looks have cost so far."""

from collections.abc import Iterable
from enum import Enum

from inferd.tuning.candidates import Candidate, Compiled
from inferd.tuning.measurement import Measurement


class _Change(Enum):
    """What has to be done before a candidate can be measured: compile, import what was compiled before, nothing."""

    NEW = 2
    BACK = 1
    NONE = 0


class Costs:
    """Seconds a look takes: the most seen so far of its kind, so that a budget holds."""

    def __init__(self) -> None:
        self._setup: dict[_Change, float] = {}
        self._window: dict[Candidate, float] = {}
        self._known: set[Compiled] = set()
        self._current: Compiled | None = None

    def learn(self, measurement: Measurement) -> None:
        """A look is over."""
        compiled = measurement.asked.compiled
        change = self._change(self._current, compiled)
        self._known.add(compiled)
        self._current = compiled
        # What a failure took says nothing of those that run.
        if measurement.failure is None:
            measured = sum(w.seconds for w in measurement.windows)
            self._window[measurement.effective] = max(w.seconds for w in measurement.windows)
            self._setup[change] = max(self._setup.get(change, 0.0), measurement.cost - measured)

    def foresee(self, candidates: Iterable[Candidate], windows: int) -> float:
        """Seconds for so many windows of each, one after the other; 0 while nothing is known."""
        # A slow candidate's windows may be longer, to hold enough answers.
        longest, current, total = max(self._window.values(), default=0.0), self._current, 0.0
        for candidate in candidates:
            total += self._foreseen(self._change(current, candidate.compiled))
            total += windows * self._window.get(candidate, longest)
            current = candidate.compiled
        return total

    def switches(self, candidate: Candidate) -> bool:
        """Whether another model has to be compiled or imported for it."""
        return self._change(self._current, candidate.compiled) is not _Change.NONE

    def _foreseen(self, change: _Change) -> float:
        if change in self._setup:
            return self._setup[change]
        # What wasn't seen yet costs no more than what takes more work, as far as that was seen.
        more = [cost for kind, cost in self._setup.items() if kind.value >= change.value]
        return min(more) if more else max(self._setup.values(), default=0.0)

    def _change(self, current: Compiled | None, compiled: Compiled) -> _Change:
        if compiled == current:
            return _Change.NONE
        return _Change.BACK if compiled in self._known else _Change.NEW
