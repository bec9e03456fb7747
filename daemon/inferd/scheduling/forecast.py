"""How long a new request would wait, by learnt service times; 0 means unknown."""

from inferd.scheduling.batching import BatchSize
from inferd.scheduling.entry import Entry
from inferd.scheduling.pool_state import PoolState
from inferd.scheduling.queue import RequestQueue


class Forecast:
    """For one queue in front of ``pools``, those not disabled, whose runs have the size ``size``."""

    def __init__(self, pools: list[PoolState], queue: RequestQueue, size: BatchSize) -> None:
        self._pools = pools
        self._queue = queue
        self._size = size

    def wait(self, newcomer: Entry, now: int) -> float:
        """Nanoseconds until ``newcomer``, which is not queued yet, would start."""
        ahead = self._queue.rows_ahead(newcomer.level, newcomer.due)
        soonest = min([pool.next_completion(now) for pool in self._pools], default=0.0)
        if not ahead and not soonest:
            return 0.0
        rate = self.rate()
        return ahead / rate + soonest if rate else 0.0

    def rate(self) -> float:
        """Rows a nanosecond that the pools complete while all are busy."""
        rate = 0.0
        for pool in self._pools:
            rows = self._size.usual(pool.times)
            if took := pool.times.expected(rows):
                rate += pool.width * rows / took
        return rate

    def turnaround(self) -> float:
        """Nanoseconds that a run usually takes on the fastest pool."""
        return min([pool.times.expected(self._size.usual(pool.times)) for pool in self._pools], default=0.0)
