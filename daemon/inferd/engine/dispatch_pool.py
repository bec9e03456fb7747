"""A pool as a dispatcher sees it, and the state of its device."""

from collections.abc import Sequence
from dataclasses import dataclass

from inferd.engine.pool import Pool
from inferd.scheduling.fairness import Share


@dataclass(frozen=True, slots=True)
class DispatchPool:
    """A pool with what the scheduler should know of it: service times seen at warm-up, as (rows of the
    run, nanoseconds), and its part of the device, None where it has the device to itself."""

    pool: Pool
    times: Sequence[tuple[int, float]] = ()
    share: Share | None = None


@dataclass(slots=True)
class DeviceStats:
    """How runs on one device have gone since the start: ended well, failed (runs given up by their clients are not
    counted), given up because they hung; and how many infer requests others have ``replaced`` for that. ``wedged`` is
    why infer requests that hang can't be replaced, ``lost`` why nothing runs there any more; both are "" while all is
    well."""

    device: str
    succeeded: int = 0
    failed: int = 0
    hung: int = 0
    replaced: int = 0
    wedged: str = ""
    lost: str = ""
