"""Two runs side by side: the ratio of the second to the first, for every quantity."""

from collections.abc import Callable
from dataclasses import dataclass

from inferd.bench.load import Load
from inferd.bench.report import BenchRun, Step


@dataclass(frozen=True, slots=True)
class Measured:
    """A quantity of a step in which two runs can differ. ``factor`` converts it to ``unit``."""

    name: str
    unit: str
    factor: float
    more_is_better: bool
    of: Callable[[Step], float | None]


_GOODPUT = Measured("goodput", "/s", 1.0, True, lambda s: None if s.objective is None else s.window.goodput)
QUANTITIES = (
    Measured("answered", "/s", 1.0, True, lambda s: s.window.throughput),
    _GOODPUT,
    Measured("p50", "ms", 1e3, False, lambda s: s.window.latencies.quantile(50)),
    Measured("p99", "ms", 1e3, False, lambda s: s.window.latencies.quantile(99)),
    Measured("p99.9", "ms", 1e3, False, lambda s: s.window.latencies.quantile(99.9)),
    Measured("server CPU", "us", 1e6, False, lambda s: s.server.cpu),
    Measured("server memory", "MB", 1e-6, False, lambda s: s.server.rss_bytes),
)


@dataclass(frozen=True, slots=True)
class Compared:
    """One quantity under one load, in ``first`` and in ``second``."""

    load: Load
    quantity: Measured
    first: float
    second: float

    @property
    def ratio(self) -> float | None:
        """``second`` divided by ``first``; None if the first is zero."""
        return self.second / self.first if self.first else None


def compare(first: BenchRun, second: BenchRun) -> tuple[Compared, ...]:
    """Every quantity that both runs know, under every load that they share, in the order of the first.

    Goodput under two objectives is two quantities.
    """
    both = [q for q in QUANTITIES if q is not _GOODPUT or first.objective == second.objective]
    others = {step.load: step for step in second.steps}
    return tuple(
        Compared(step.load, quantity, one, two)
        for step in first.steps
        if (other := others.get(step.load)) is not None
        for quantity in both
        if (one := quantity.of(step)) is not None and (two := quantity.of(other)) is not None
    )


def unmatched_loads(first: BenchRun, second: BenchRun) -> tuple[Load, ...]:
    """The loads that only one of the runs has."""
    return tuple(
        dict.fromkeys(
            s.load
            for a, b in ((first, second), (second, first))
            for s in a.steps
            if s.load not in {t.load for t in b.steps}
        )
    )
