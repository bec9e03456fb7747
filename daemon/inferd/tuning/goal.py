"""The goal of a tuning, and whether the evidence shows that a candidate meets it."""

from dataclasses import dataclass
from enum import Enum
from math import sqrt
from typing import Literal

# One-sided: one in a hundred is misjudged, and about one in fifty if few answers are late.
_CONFIDENCE = 2.33


@dataclass(frozen=True, slots=True)
class Goal:
    """``kind`` is what to optimise: throughput, or latency by the lowest median.

    ``percentile`` % of answers must come within ``latency`` seconds; None for no objective, and then
    only ``kind`` counts.
    """

    kind: Literal["throughput", "latency"]
    latency: float | None = None
    percentile: float = 99.0

    def __post_init__(self) -> None:
        if self.latency is not None and self.latency <= 0:
            raise ValueError(f"a latency must be positive, not {self.latency}")
        if not 0 < self.percentile <= 100:
            raise ValueError(f"a percentile is above 0 and at most 100, not {self.percentile}")


class GoalVerdict(Enum):
    """Whether the objective is met: certainly, possibly, or certainly not."""

    KEEPS = "keeps"
    UNSURE = "unsure"
    MISSES = "misses"


def judge(in_time: int, answers: int, independent: float, percentile: float) -> GoalVerdict:
    """Whether at least ``percentile`` % come in time, where ``in_time`` of ``answers`` did.

    Answers of one run are not independent: ``independent`` is the effective sample size. The bounds
    are Wilson's, which hold for shares near 1 and few answers.
    """
    needed = percentile / 100
    low, high = share_bounds(in_time / answers if answers else 1.0, independent, _CONFIDENCE)
    if high < needed:
        return GoalVerdict.MISSES
    return GoalVerdict.KEEPS if low >= needed else GoalVerdict.UNSURE


def share_bounds(share: float, trials: float, z: float) -> tuple[float, float]:
    """Wilson's score interval for a ``share`` seen in ``trials``."""
    if trials <= 0:
        return 0.0, 1.0
    spread = z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    # At the ends the bound is exactly 0 or 1; avoid rounding errors.
    return (0.0 if share <= 0 else centre - half), (1.0 if share >= 1 else centre + half)
