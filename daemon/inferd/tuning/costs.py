"""What a look will cost, foreseen from what looks have cost so far."""

from collections.abc import Iterable
from enum import Enum

from inferd.tuning.candidates import Candidate, CompileKey
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
        self._known: set[CompileKey] = set()
        self._current: CompileKey | None = None

    def learn(self, measurement: Measurement) -> None:
        """A look is over."""
        compile_key = measurement.asked.compile_key
        change = self._change(self._current, compile_key)
        self._known.add(compile_key)
        self._current = compile_key
        # The time of a failure says nothing about candidates that run.
        if measurement.failure is None:
            measured = sum(w.seconds for w in measurement.windows)
            self._window[measurement.effective] = max(w.seconds for w in measurement.windows)
            self._setup[change] = max(self._setup.get(change, 0.0), measurement.cost - measured)

    def predict(self, candidates: Iterable[Candidate], windows: int) -> float:
        """Seconds for so many windows of each, one after the other; 0 while nothing is known."""
        # A slow candidate's windows may be longer, to hold enough answers.
        longest, current, total = max(self._window.values(), default=0.0), self._current, 0.0
        for candidate in candidates:
            total += self._predicted(self._change(current, candidate.compile_key))
            total += windows * self._window.get(candidate, longest)
            current = candidate.compile_key
        return total

    def switches(self, candidate: Candidate) -> bool:
        """Whether another model has to be compiled or imported for it."""
        return self._change(self._current, candidate.compile_key) is not _Change.NONE

    def _predicted(self, change: _Change) -> float:
        if change in self._setup:
            return self._setup[change]
        # What wasn't seen yet costs no more than what takes more work, as far as that was seen.
        more = [cost for kind, cost in self._setup.items() if kind.value >= change.value]
        return min(more) if more else max(self._setup.values(), default=0.0)

    def _change(self, current: CompileKey | None, compile_key: CompileKey) -> _Change:
        if compile_key == current:
            return _Change.NONE
        return _Change.BACK if compile_key in self._known else _Change.NEW
