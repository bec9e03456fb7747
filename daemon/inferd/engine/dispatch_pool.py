"""A pool as the dispatcher sees it, and the state of its device."""

from collections.abc import Sequence
from dataclasses import dataclass

from inferd.engine.pool import Pool
from inferd.scheduling.fairness import Share


@dataclass(frozen=True, slots=True)
class DispatchPool:
    """A pool with the scheduler's inputs: service times from warm-up, as (rows of the run, nanoseconds), and its share
    of the device, None if it has the device to itself."""

    pool: Pool
    times: Sequence[tuple[int, float]] = ()
    share: Share | None = None


@dataclass(slots=True)
class DeviceStats:
    """The runs on one device since the start: succeeded, failed (not abandoned by clients) or given up as hung;
    and the infer requests ``replaced`` after hung runs. ``wedged`` is why hung infer requests can't be replaced,
    ``lost`` why nothing runs there any more; both are "" if all is well."""

    device: str
    succeeded: int = 0
    failed: int = 0
    hung: int = 0
    replaced: int = 0
    wedged: str = ""
    lost: str = ""
