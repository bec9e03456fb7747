"""The result of measuring a candidate. All times in seconds."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from statistics import median_high

from inferd.tuning.candidates import Candidate

# A window below this fraction of its candidate's usual rate was disturbed by other processes.
_DISTURBED = 0.7


@dataclass(frozen=True, slots=True)
class MeasurementWindow:
    """``seconds`` under full load; ``latencies`` ascending, one for each answer, that is each row of a run."""

    seconds: float
    latencies: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.seconds <= 0 or (self.latencies and self.latencies[0] <= 0):
            raise ValueError("a window and every latency in it take some time")

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds

    def within(self, latency: float | None) -> int:
        """The number of answers within ``latency``; all of them for None."""
        return len(self.latencies) if latency is None else bisect_right(self.latencies, latency)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement: ``asked`` is the configuration, ``effective`` what the device made of it, ``cost`` the time.

    With a ``failure``, the candidate didn't compile or run, and there are no windows.
    """

    asked: Candidate
    effective: Candidate
    windows: tuple[MeasurementWindow, ...]
    cost: float
    failure: str | None = None

    def __post_init__(self) -> None:
        if (self.failure is None) != bool(self.windows):
            raise ValueError("a measurement has either windows or a failure")


def undisturbed(windows: list[MeasurementWindow]) -> list[MeasurementWindow]:
    """The windows in which no other process disturbed the candidate, judged by its other windows."""
    # The upper median: disturbances make a window slower, never faster.
    usual = median_high([w.rate for w in windows])
    return [w for w in windows if w.rate >= _DISTURBED * usual]


def percentile(ascending: Sequence[float], percent: float) -> float:
    """The value that ``percent`` % of the values don't exceed; infinite if there are none."""
    if not ascending:
        return float("inf")
    return ascending[max(0, ceil(len(ascending) * percent / 100 - 1e-9) - 1)]
