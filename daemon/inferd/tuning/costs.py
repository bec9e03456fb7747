"""Predicts what a measurement will cost from the costs so far."""

from collections.abc import Iterable
from enum import Enum

from inferd.tuning.candidates import Candidate, CompileKey
from inferd.tuning.measurement import Measurement


class _Change(Enum):
    """What a candidate needs before it can be measured: a compile, an import from the cache, or nothing."""

    NEW = 2
    BACK = 1
    NONE = 0


class Costs:
    """Seconds per measurement: the maximum of each kind so far, so that a budget holds."""

    def __init__(self) -> None:
        self._setup: dict[_Change, float] = {}
        self._window: dict[Candidate, float] = {}
        self._known: set[CompileKey] = set()
        self._current: CompileKey | None = None

    def learn(self, measurement: Measurement) -> None:
        """Record the cost of ``measurement``."""
        compile_key = measurement.asked.compile_key
        change = self._change(self._current, compile_key)
        self._known.add(compile_key)
        self._current = compile_key
        # The time a failure takes says nothing about candidates that run.
        if measurement.failure is None:
            measured = sum(w.seconds for w in measurement.windows)
            self._window[measurement.effective] = max(w.seconds for w in measurement.windows)
            self._setup[change] = max(self._setup.get(change, 0.0), measurement.cost - measured)

    def predict(self, candidates: Iterable[Candidate], windows: int) -> float:
        """Seconds for ``windows`` of each candidate, one after the other; 0 while nothing is known."""
        # Windows of a slow candidate may be longer, to hold enough answers.
        longest, current, total = max(self._window.values(), default=0.0), self._current, 0.0
        for candidate in candidates:
            total += self._predicted(self._change(current, candidate.compile_key))
            total += windows * self._window.get(candidate, longest)
            current = candidate.compile_key
        return total

    def switches(self, candidate: Candidate) -> bool:
        """Whether measuring it needs a compile or an import."""
        return self._change(self._current, candidate.compile_key) is not _Change.NONE

    def _predicted(self, change: _Change) -> float:
        if change in self._setup:
            return self._setup[change]
        # An unknown kind costs no more than a known kind that takes more work.
        more = [cost for kind, cost in self._setup.items() if kind.value >= change.value]
        return min(more) if more else max(self._setup.values(), default=0.0)

    def _change(self, current: CompileKey | None, compile_key: CompileKey) -> _Change:
        if compile_key == current:
            return _Change.NONE
        return _Change.BACK if compile_key in self._known else _Change.NEW
