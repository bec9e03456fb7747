"""How one model version is scheduled, derived from its settings and its pools."""

from dataclasses import dataclass, field

from inferd.scheduling.batching import BatchRule
from inferd.scheduling.fairness import Share
from inferd.scheduling.hangs import HangRule
from inferd.scheduling.objective import Objective
from inferd.scheduling.sequences import SequenceLimits


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of the request queue, and how many requests one client may have in flight (None: no limit)."""

    max_length: int
    max_bytes: int
    per_client: int | None = None


@dataclass(frozen=True, slots=True)
class SchedulerRules:
    """How one model version is scheduled."""

    limits: QueueLimits
    batch: BatchRule = field(default=BatchRule())
    objective: Objective | None = None
    sequences: SequenceLimits | None = None
    # The model itself keeps a sequence's state, in the slot.
    pinned: bool = False
    # None: runs may take for ever.
    hangs: HangRule | None = None


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """One pool as the scheduler sees it: its slots, how many may run at a time (None: all), its share of the device."""

    slots: int
    width: int | None = None
    share: Share | None = None
