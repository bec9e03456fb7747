"""The forecast of a newcomer's wait, from learnt service times."""

from hypothesis import given
from hypothesis import strategies as st

from inferd.scheduling.batching import BatchRule, BatchSize
from inferd.scheduling.entry import Entry
from inferd.scheduling.forecast import Forecast
from inferd.scheduling.pool_state import PoolState
from inferd.scheduling.queue import RequestQueue
from tests.scheduling.work import work

# A newcomer behind all queued requests, and one ahead of them.
LAST = Entry(work(), 10**6, 10**9)
FIRST = Entry(work(priority=1), 10**6, 10**9)

# Nanoseconds of a run of one row, by pool; and the pools' widths.
pools = st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, 4)), min_size=1, max_size=3)


def stage(times_and_widths: list[tuple[int, int]], waiting: int) -> tuple[Forecast, list[PoolState]]:
    """Pools of one-row runs, all slots busy since time 0, and a queue of this length."""
    states = [PoolState(width, width) for _, width in times_and_widths]
    for state, (took, _) in zip(states, times_and_widths, strict=True):
        state.times.seed(1, took)
        while state.room:
            state.occupy(0)
    queue = RequestQueue()
    for number in range(waiting):
        queue.append(Entry(work(), number, 0))
    return Forecast(states, queue, BatchSize(BatchRule())), states


@given(pools, st.integers(0, 20), st.integers(0, 10**9))
def test_a_newcomer_waits_for_the_queue_and_for_the_first_slot(
    given: list[tuple[int, int]], ahead: int, now: int
) -> None:
    forecast, _ = stage(given, ahead)
    rate = sum(width / took for took, width in given)
    soonest = min(max(0, took - now) for took, _ in given)
    assert abs(forecast.rate() - rate) <= 1e-9 * rate
    expected = ahead / rate + soonest
    assert abs(forecast.wait(LAST, now) - expected) <= 1e-9 * max(expected, 1)


@given(pools)
def test_there_is_no_wait_with_a_free_slot_and_an_empty_queue(given: list[tuple[int, int]]) -> None:
    forecast, states = stage(given, 0)
    states[-1].release(0, 1, 1, learn=False)
    assert forecast.wait(FIRST, 0) == 0


@given(pools, st.integers(1, 20))
def test_a_request_that_goes_first_does_not_wait_for_the_others(given: list[tuple[int, int]], waiting: int) -> None:
    forecast, _ = stage(given, waiting)
    assert forecast.wait(FIRST, 0) < forecast.wait(LAST, 0)


@given(pools)
def test_the_turnaround_is_the_fastest_pools(given: list[tuple[int, int]]) -> None:
    forecast, _ = stage(given, 0)
    assert forecast.turnaround() == min(took for took, _ in given)


def test_unmeasured_pools_and_no_pools_give_no_forecast() -> None:
    queue = RequestQueue()
    queue.append(Entry(work(), 0, 0))
    for states in ([PoolState(1, 1)], []):
        forecast = Forecast(states, queue, BatchSize(BatchRule()))
        assert (forecast.wait(LAST, 0), forecast.rate(), forecast.turnaround()) == (0, 0, 0)
