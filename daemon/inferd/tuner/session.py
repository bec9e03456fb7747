"""Drives a search: asks it for the next candidate, has it measured, and reports progress."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from inferd.tuning.candidates import Candidate
from inferd.tuning.estimates import Estimate
from inferd.tuning.measurement import Measurement
from inferd.tuning.outcome import Outcome
from inferd.tuning.search import Look, Search

Measure = Callable[[Candidate, int], Measurement]


@dataclass(frozen=True, slots=True)
class Progress:
    """A search's progress: the measurement under way, or finished if ``measured`` is set. Times in seconds."""

    look: Look
    measured: Measurement | None
    best: Estimate | None
    looks: int
    spent: float
    budget: float


class SearchStopped(Exception):
    """The session was stopped before the search ended; ``why`` is one phrase."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)


def tune(
    search: Search,
    measure: Measure,
    budget: float,
    tell: Callable[[Progress], None] = lambda _: None,
    stop_reason: Callable[[], str] = lambda: "",
) -> Outcome:
    """Search to the end, for about ``budget`` seconds at most.

    ``stop_reason`` is called before each measurement; a reason stops the session. Raises SearchStopped.
    """
    begun, looks = time.monotonic(), 0
    while True:
        spent = time.monotonic() - begun
        step = search.step(spent)
        if isinstance(step, Outcome):
            return step
        if why := stop_reason():
            raise SearchStopped(why)
        tell(Progress(step, None, search.best_so_far, looks, spent, budget))
        measured = measure(step.candidate, step.windows)
        search.learn(measured)
        looks += 1
        tell(Progress(step, measured, search.best_so_far, looks, time.monotonic() - begun, budget))
