"""Event loop lag is counted for every moment at which a request could have come."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from inferd.exposition.lag import AcceptWaitCollector, LagMonitor
from inferd.metrics.histogram import Histogram
from inferd.metrics.instruments import ACCEPT_WAIT_BUCKETS, LAG_BUCKETS
from inferd.transport.event_loop import QueueEventLoop
from tests.event_loop import until
from tests.metrics.scraped import named, scraped

LOOP = "inferd_event_loop_lag_seconds"
THREAD = "inferd_thread_lag_seconds"


class Timer:
    def __init__(self, at: float, callback: Callable[[], object]) -> None:
        self.at, self.callback, self.cancelled = at, callback, False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """A loop whose time is ours, and the one timer that waits in it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timer: Timer | None = None

    def time(self) -> float:
        # The thread has another clock: its own moments are not looked at here.
        return self.now if threading.current_thread() is threading.main_thread() else 0.0

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        self.timer = Timer(self.now + delay, callback)
        return self.timer

    def run(self, late: float = 0.0) -> None:
        """Run the timer, so much too late."""
        assert self.timer is not None
        self.now = self.timer.at + late
        self.timer.callback()


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def monitor(loop: Loop) -> Iterator[LagMonitor]:
    monitor = LagMonitor(0.1, loop.time)
    monitor.start(loop)
    yield monitor
    monitor.stop()


def counts(monitor: LagMonitor, name: str) -> list[int]:
    """Moments of each bucket, the one above all bounds last."""
    found = scraped(monitor)
    rising = [int(found[(f"{name}_bucket", le)]) for le in (*map(str, LAG_BUCKETS), "+Inf")]
    return [count - before for before, count in zip([0, *rising], rising, strict=False)]


def test_a_timer_that_runs_in_time_is_counted_as_in_time(loop: Loop, monitor: LagMonitor) -> None:
    for _ in range(5):
        loop.run()
    assert counts(monitor, LOOP) == [5, 0, 0, 0, 0, 0, 0, 0, 0, 0]


def test_a_late_timer_counts_every_moment_that_was_missed(loop: Loop, monitor: LagMonitor) -> None:
    loop.run(late=0.32)
    # Due 0.32, 0.22, 0.12 and 0.02 s before.
    assert counts(monitor, LOOP) == [0, 0, 0, 0, 1, 0, 0, 2, 1, 0]
    assert scraped(monitor)[(f"{LOOP}_sum",)] == pytest.approx(0.68)


def test_after_a_late_one_the_next_comes_at_the_next_moment(loop: Loop, monitor: LagMonitor) -> None:
    loop.run(late=0.32)
    assert loop.timer is not None
    assert loop.timer.at == pytest.approx(1000.5)
    loop.run()
    assert sum(counts(monitor, LOOP)) == 5


def test_a_loop_that_does_not_turn_is_stalled_until_it_does(loop: Loop, monitor: LagMonitor) -> None:
    assert monitor.stalled() == 0
    loop.now += 3.1
    assert monitor.stalled() == pytest.approx(3)
    loop.run()
    assert monitor.stalled() == 0


def test_before_the_start_nothing_is_stalled(loop: Loop) -> None:
    assert LagMonitor(0.1, loop.time).stalled() == 0


def test_a_timer_that_runs_a_little_early_is_in_time(loop: Loop, monitor: LagMonitor) -> None:
    loop.run(late=-0.001)
    assert counts(monitor, LOOP)[0] == 1
    assert scraped(monitor)[(f"{LOOP}_sum",)] == 0


def test_a_timer_that_runs_much_too_early_runs_again(loop: Loop, monitor: LagMonitor) -> None:
    loop.run(late=-0.05)
    assert sum(counts(monitor, LOOP)) == 0
    assert loop.timer is not None
    assert loop.timer.at == pytest.approx(1000.1)


def test_stopping_cancels_the_timer_ends_the_thread_and_may_be_repeated(loop: Loop, monitor: LagMonitor) -> None:
    assert "lag" in {thread.name for thread in threading.enumerate()}
    monitor.stop()
    monitor.stop()
    assert loop.timer is not None
    assert loop.timer.cancelled
    assert "lag" not in {thread.name for thread in threading.enumerate()}


def test_one_that_never_started_shows_nothing_and_may_be_stopped() -> None:
    monitor = LagMonitor()
    monitor.stop()
    assert sum(counts(monitor, LOOP)) == sum(counts(monitor, THREAD)) == 0


class ThreadTime:
    """A clock that tells its own thread one thing and the watching thread, one after the other, ``moments``."""

    def __init__(self, *moments: float) -> None:
        self._moments = iter(moments)
        self.exhausted = threading.Event()
        self._last = 0.0

    def __call__(self) -> float:
        if threading.current_thread().name == "lag":
            moment = next(self._moments, None)
            if moment is None:
                self.exhausted.set()
            else:
                self._last = moment
            return self._last
        return 0.0


def test_the_threads_lateness_is_counted_likewise(loop: Loop) -> None:
    clock = ThreadTime(0.0, 0.01, 0.033)
    monitor = LagMonitor(0.01, clock)
    monitor.start(loop)
    assert clock.exhausted.wait(30)
    monitor.stop()
    # In time at 0.01; at 0.033 the moment at 0.03 was 3 ms ago and the one at 0.02 13 ms.
    assert counts(monitor, THREAD) == [1, 0, 1, 0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, QueueEventLoop], ids=["asyncio", "queue"])
def test_a_real_loop_that_was_blocked_shows_it(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def block() -> None:
        monitor = LagMonitor()
        monitor.start(asyncio.get_running_loop())
        # The work of a callback that takes too long.
        time.sleep(0.4)  # noqa: ASYNC251
        await until(lambda: sum(counts(monitor, LOOP)) > 0)
        # Four moments passed meanwhile, of which the first was 0.3 s ago.
        assert sum(counts(monitor, LOOP)) >= 4
        assert sum(counts(monitor, LOOP)[8:]) >= 1
        monitor.stop()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(block())


def test_a_real_thread_beats(loop: Loop) -> None:
    looked = threading.Semaphore(0)

    def clock() -> float:
        if threading.current_thread().name == "lag":
            looked.release()
        return time.monotonic()

    monitor = LagMonitor(0.001, clock)
    monitor.start(loop)
    for _ in range(12):
        assert looked.acquire(timeout=30)
    monitor.stop()
    # The first look comes at the start, and what the last one counted may not have been seen.
    assert sum(counts(monitor, THREAD)) >= 10


def test_what_calls_waited_before_they_were_seen_is_a_series() -> None:
    waits = Histogram(ACCEPT_WAIT_BUCKETS, 10**9)
    for milliseconds in (0.4, 30, 20_000):
        waits.add(round(milliseconds * 1_000_000))
    samples = scraped(AcceptWaitCollector(waits))
    assert samples["inferd_accept_wait_seconds_count",] == 3
    assert samples["inferd_accept_wait_seconds_sum",] == pytest.approx(20.0304)
    bounds = named(samples, "inferd_accept_wait_seconds_bucket")
    assert [bounds[str(bound),] for bound in (0.001, 0.025, 0.05, 10.0)] == [1, 1, 2, 2]
    assert bounds["+Inf",] == 3
