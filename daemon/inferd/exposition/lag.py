"""How late the event loop and a thread get to run: a request would have waited as long."""

import math
import time
from collections.abc import Callable, Iterator
from threading import Event, Thread
from typing import Protocol

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from inferd.metrics import instruments
from inferd.metrics.families import histogram
from inferd.metrics.histogram import Histogram

# A timer may run this many seconds too soon: some loops count whole milliseconds, of a clock that was read a while ago.
_EARLY = 0.002


class Timer(Protocol):
    """What is used of an event loop's timer."""

    def cancel(self) -> None: ...


class Loop(Protocol):
    """What is used of an event loop.

    Its own clock is not: a loop's may stand still while callbacks run, and count in milliseconds.
    """

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer: ...


class _Beat:
    """Moments ``every`` seconds apart, and how late each was noticed.

    A very late look has missed several moments and counts them all, each with its own lateness:
    a request that came at that moment would have waited as long.
    """

    def __init__(self, every: float) -> None:
        self.lateness = Histogram(instruments.LAG_BUCKETS)
        self._every, self._next = every, math.inf

    def start(self, now: float) -> None:
        self._next = now + self._every

    def count(self, now: float) -> float:
        """Count the moments up to ``now``; the seconds until the next one."""
        while self._next <= now + _EARLY:
            self.lateness.add(max(0.0, now - self._next))
            self._next += self._every
        return self._next - now

    def overdue(self, now: float) -> float:
        """Seconds since the next moment should have been noticed, 0 if that lies ahead."""
        return max(0.0, now - self._next)


class AcceptWaitCollector(Collector):
    """What calls waited in gRPC, before the event loop knew of them."""

    def __init__(self, waits: Histogram) -> None:
        self._waits = waits

    def collect(self) -> Iterator[Metric]:
        yield histogram(instruments.ACCEPT_WAIT, [((), self._waits)])


class LagMonitor(Collector):
    """Looks every so many seconds from :meth:`start` to :meth:`stop`, both of which the loop's thread calls."""

    def __init__(self, every: float = 0.1, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._of_loop, self._of_thread = _Beat(every), _Beat(every)
        self._timer: Timer | None = None
        self._stopped = Event()
        self._thread = Thread(target=self._watch, name="lag", daemon=True)

    def start(self, loop: Loop) -> None:
        """Called once."""
        now = self._clock()
        self._of_loop.start(now)
        self._of_thread.start(now)
        self._look(loop)
        self._thread.start()

    def stop(self) -> None:
        """Harmless when called again, or without a start."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._thread.is_alive():
            self._thread.join()

    def stalled(self) -> float:
        """Seconds for which the loop has not turned, 0 while it does; any thread."""
        return self._of_loop.overdue(self._clock())

    def collect(self) -> Iterator[Metric]:
        yield histogram(instruments.LOOP_LAG, [((), self._of_loop.lateness)])
        yield histogram(instruments.THREAD_LAG, [((), self._of_thread.lateness)])

    def _look(self, loop: Loop) -> None:
        self._timer = loop.call_later(self._of_loop.count(self._clock()), lambda: self._look(loop))

    def _watch(self) -> None:
        while not self._stopped.wait(self._of_thread.count(self._clock())):
            pass
