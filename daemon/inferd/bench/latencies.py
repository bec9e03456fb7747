"""Durations as an HDR histogram: quantiles within a thousandth, however many there are, summed over processes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

_HIGHEST = 3_600_000_000_000
_DIGITS = 3
# 2 * 10^3 values are told apart in each power of two, rounded up to a power itself; longer values lose low bits.
_BITS = 11


@dataclass(frozen=True, slots=True)
class Latencies:
    """Durations of 1 ns to 1 h; those outside count as the end of that range.

    ``histogram`` is in HdrHistogram's V2 format, base64, in nanoseconds, and readable by other tools. ``total``,
    ``least`` and ``most`` are exact, in nanoseconds, and 0 if ``count`` is.
    """

    histogram: str
    count: int
    total: int
    least: int
    most: int

    @classmethod
    def of(cls, nanoseconds: "Sequence[int] | npt.NDArray[np.int64]") -> "Latencies":
        """The durations in ``nanoseconds``."""
        seen = np.clip(np.asarray(nanoseconds, np.int64), 1, _HIGHEST)
        histogram = _empty()
        # The library takes one value at a time, in microseconds: pass it each distinguishable value once.
        lost = np.maximum(0, np.frexp(seen.astype(np.float64))[1] - _BITS)
        for value, count in zip(*np.unique(seen >> lost << lost, return_counts=True), strict=True):
            histogram.record_value(int(value), int(count))
        exact = (int(seen.sum()), int(seen.min()), int(seen.max())) if seen.size else (0, 0, 0)
        return cls(histogram.encode().decode(), seen.size, *exact)

    @classmethod
    def merged(cls, parts: Iterable["Latencies"]) -> "Latencies":
        """All of ``parts`` together."""
        some = [p for p in parts if p.count]
        histogram = _empty()
        for part in some:
            histogram.add(HdrHistogram.decode(part.histogram))
        return cls(
            histogram.encode().decode(),
            sum(p.count for p in some),
            sum(p.total for p in some),
            min((p.least for p in some), default=0),
            max((p.most for p in some), default=0),
        )

    @property
    def mean(self) -> float | None:
        """Seconds."""
        return self.total / self.count / 1e9 if self.count else None

    @property
    def worst(self) -> float | None:
        """Seconds."""
        return self.most / 1e9 if self.count else None

    def quantiles(self, percentiles: Sequence[float]) -> list[float | None]:
        """For each of ``percentiles`` the smallest duration that this share does not exceed, in seconds.

        At most a thousandth above the true one, and never below; None without durations.
        """
        if not self.count:
            return [None] * len(percentiles)
        ranks = [max(1, ceil(Fraction(str(p)) * self.count / 100)) for p in percentiles]
        # The library rounds a percentile to the nearest rank, which may be one too low: ask for ranks instead.
        asked = [min(100.0, 100 * rank / self.count) for rank in ranks]
        found = HdrHistogram.decode(self.histogram).get_percentile_to_value_dict(asked)
        return [min(found[a], self.most) / 1e9 for a in asked]

    def quantile(self, percentile: float) -> float | None:
        """One of :meth:`quantiles`."""
        return self.quantiles([percentile])[0]


def _empty() -> HdrHistogram:
    return HdrHistogram(1, _HIGHEST, _DIGITS)
