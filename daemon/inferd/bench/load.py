"""The load on a server in one step of a run."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Arrivals = Literal["poisson", "constant"]


@dataclass(frozen=True, slots=True)
class Closed:
    """A closed loop: ``concurrency`` clients that each send the next request after a response."""

    concurrency: int

    def describe(self) -> str:
        return f"{self.concurrency} in flight"

    def seats(self, part: int, parts: int) -> int:
        """How many of the clients are in process ``part`` of ``parts``."""
        return len(range(part, self.concurrency, parts))


@dataclass(frozen=True, slots=True)
class Open:
    """An open loop: ``rate`` requests a second, whether or not the earlier ones have ended."""

    rate: float
    arrivals: Arrivals

    def describe(self) -> str:
        return f"{self.rate:g}/s{' even' if self.arrivals == 'constant' else ''}"

    def due(self, seconds: float, seed: int) -> "npt.NDArray[np.int64]":
        """When requests are due, nanoseconds from 0, ascending, below ``seconds``.

        Process ``part`` of ``parts`` sends ``due[part::parts]``: the total is the same for any number of processes.
        """
        if self.arrivals == "constant":
            times = np.arange(np.ceil(self.rate * seconds)) / self.rate
        else:
            times = _cumulated_gaps(self.rate, seconds, np.random.default_rng(seed))
        return (times[times < seconds] * 1e9).astype(np.int64)


Load = Closed | Open


def _cumulated_gaps(rate: float, seconds: float, chance: np.random.Generator) -> "npt.NDArray[np.float64]":
    times = np.empty(0)
    while not times.size or times[-1] < seconds:
        gaps = chance.exponential(1 / rate, max(64, int(rate * seconds)))
        times = np.concatenate([times, np.cumsum(gaps) + (times[-1] if times.size else 0.0)])
    return times
