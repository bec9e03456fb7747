"""How a candidate is judged next to an incumbent: what every policy decides, and what it is asked for that."""

from enum import Enum
from math import sqrt
from typing import Literal, Protocol

from inferd.requests import Observation
from inferd.tuning.goal import share_bounds

# One-sided: one in a hundred is judged wrongly at a look.
CONFIDENCE = 2.33

Side = Literal["incumbent", "candidate"]


class RolloutDecision(Enum):
    """How a rollout ends. Everything but PROMOTED leaves the incumbent as it was."""

    PROMOTED = "promoted"
    WRONG_OUTPUT = "wrong_output"
    FAILED = "failed"
    WORSE = "worse"
    STOPPED = "stopped"


class RolloutPolicy(Protocol):
    """Gives the candidate its share of the requests by stages, and decides by what both sides answered. Times are
    seconds of whatever clock :meth:`step` is given."""

    @property
    def share(self) -> float:
        """The part of the requests that the candidate is to get now, 0..1."""

    def observe(self, side: Side, seen: Observation) -> None:
        """A request to ``side`` has ended."""

    def step(self, now: float, waiting: int) -> RolloutDecision | None:
        """What to do at ``now``: None to go on with :attr:`share`. ``waiting`` requests are with the candidate."""

    def conclude(self, waiting: int) -> RolloutDecision:
        """What to do by what was seen until now, as the incumbent does not answer at all."""

    def reason(self, decision: RolloutDecision) -> str:
        """Why it ended as ``decision``, in words."""


def exceeds(bad: int, of: int, other_bad: int, of_other: int) -> bool:
    """Whether ``bad`` of ``of`` is a larger part than ``other_bad`` of ``of_other``, beyond what chance explains."""
    if not of or not bad:
        return False
    low, _ = share_bounds(bad / of, of, CONFIDENCE)
    _, other_high = share_bounds(other_bad / of_other if of_other else 0.0, of_other, CONFIDENCE)
    if low > other_high:
        return True
    if not of_other:
        return False
    pooled = (bad + other_bad) / (of + of_other)
    spread = sqrt(pooled * (1 - pooled) * (1 / of + 1 / of_other))
    # The normal approximation needs a few of each.
    return bad >= 5 and spread > 0 and (bad / of - other_bad / of_other) / spread > CONFIDENCE
