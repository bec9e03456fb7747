"""A pool of slots as the scheduler sees it: free slots, and how long work takes."""

from hypothesis import given
from hypothesis import strategies as st

from inferd.scheduling.pool_state import PoolState

TIMES = st.integers(0, 10**12)


def busy(service_time: float, *started: int) -> PoolState:
    pool = PoolState(len(started), len(started))
    pool.times.seed(1, service_time)
    for at in started:
        pool.occupy(at)
    return pool


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_a_slot_is_free_or_running_and_never_both(steps: list[bool], slots: int) -> None:
    pool = PoolState(slots, slots)
    for take in steps:
        if take and pool.free:
            pool.occupy(0)
        elif not take and pool.running:
            pool.release(min(pool.running), 1, 1, learn=True)
        assert sorted([*pool.free, *pool.running]) == list(range(slots))


def test_the_most_recently_freed_slot_is_used_first() -> None:
    pool = busy(0, 0, 0, 0)
    pool.release(2, 1, 1, learn=False)
    pool.release(0, 1, 1, learn=False)
    assert (pool.occupy(2), pool.occupy(2)) == (0, 2)


def test_the_first_duration_is_taken_unchanged_and_later_ones_are_smoothed() -> None:
    pool = busy(0, 0)
    pool.release(0, 1, 100, learn=True)
    assert pool.times.expected(1) == 100
    pool.occupy(1000)
    pool.release(0, 1, 1200, learn=True)
    assert pool.times.expected(1) == 110


def test_a_run_not_to_learn_from_leaves_the_service_time_unchanged() -> None:
    pool = busy(100, 0)
    pool.release(0, 1, 1, learn=False)
    assert pool.times.expected(1) == 100


@given(st.floats(1, 1e9), st.lists(TIMES, min_size=1, max_size=50))
def test_the_service_time_stays_within_the_observed_range(seed: float, durations: list[int]) -> None:
    pool = PoolState(1, 1)
    pool.times.seed(1, seed)
    for duration in durations:
        pool.release(pool.occupy(0), 1, duration, learn=True)
    # A small relative tolerance for rounding in the smoothing.
    assert min(seed, *durations) * (1 - 1e-9) <= pool.times.expected(1) <= max(seed, *durations) * (1 + 1e-9)


def test_an_unmeasured_pool_promises_nothing() -> None:
    assert busy(0, 0, 0).completions_within(1e12, 0) == 0


def test_only_work_that_could_start_and_end_within_the_horizon_counts() -> None:
    # The slot is free again at 10 and then does one request every 10.
    assert busy(10, 0).completions_within(19, 0) == 0
    assert busy(10, 0).completions_within(20, 0) == 1
    assert busy(10, 0).completions_within(49, 0) == 3
    assert busy(10, 0, 0).completions_within(20, 0) == 2


def test_an_overdue_slot_is_expected_to_take_as_long_again_as_it_is_late() -> None:
    pool = busy(10, 0)
    assert [pool.completions_within(100, now) for now in (10, 40, 90, 100, 10**9)] == [10, 7, 2, 1, 0]


@given(st.integers(1, 1000), st.lists(TIMES, max_size=5), TIMES, TIMES)
def test_a_pool_that_hangs_ends_up_promising_nothing(
    service_time: int, started: list[int], horizon: int, now: int
) -> None:
    pool = busy(service_time, *started)
    hung = max([now, *started]) + service_time + horizon + 1
    assert pool.completions_within(horizon, now) >= 0
    assert pool.completions_within(horizon, hung) == 0
