"""When the offered load exceeds the capacity, and the limit on requests meanwhile."""

from hypothesis import given
from hypothesis import strategies as st

from inferd.scheduling.offered_load import OfferedLoad

SECOND = 1_000_000_000
MS = 1_000_000
# Rows a ns: a hundred a second.
CAPACITY = 100 / SECOND


def offer(load: OfferedLoad, rate: float, seconds: float, limits: list[int], start: int = SECOND) -> int:
    """Requests at even intervals, with these limits in turn; returns the time of the last."""
    now = start
    for number in range(int(rate * seconds)):
        now = start + int(number * SECOND / rate)
        load.came(1, limits[number % len(limits)], CAPACITY, 15 * MS, now)
    return now


def test_a_closed_loop_that_offers_the_capacity_is_not_overload() -> None:
    load = OfferedLoad()
    offer(load, 100, 20, [10 * SECOND])
    assert not load.overloaded


def test_overload_begins_after_a_while_and_ends_with_it() -> None:
    load = OfferedLoad()
    end = offer(load, 300, 0.1, [200 * MS])
    assert not load.overloaded
    end = offer(load, 300, 3, [200 * MS], end)
    assert load.overloaded
    offer(load, 90, 5, [200 * MS], end)
    assert not load.overloaded


def test_below_capacity_every_request_keeps_its_own_limit() -> None:
    load = OfferedLoad()
    end = offer(load, 50, 10, [50 * MS, 500 * MS])
    assert load.held_to(500 * MS, 15 * MS, end) == 500 * MS


def test_under_overload_all_get_the_limit_of_the_most_urgent() -> None:
    load = OfferedLoad()
    end = offer(load, 300, 10, [50 * MS, 500 * MS])
    assert load.held_to(50 * MS, 15 * MS, end) == 50 * MS
    assert 50 * MS <= load.held_to(500 * MS, 15 * MS, end) <= 60 * MS


def test_a_few_urgent_requests_do_not_shorten_the_queue_for_all() -> None:
    load = OfferedLoad()
    end = offer(load, 300, 20, [40 * MS, *[500 * MS] * 99])
    assert load.held_to(500 * MS, 15 * MS, end) > 250 * MS


def test_requests_with_barely_the_time_to_run_do_not_shorten_the_queue() -> None:
    load = OfferedLoad()
    end = offer(load, 300, 10, [1 * MS, 500 * MS])
    assert load.held_to(500 * MS, 15 * MS, end) == 500 * MS


def test_overload_that_a_request_can_wait_out_is_a_burst() -> None:
    load = OfferedLoad()
    offer(load, 300, 5, [8 * SECOND])
    begun = 6 * SECOND
    assert load.held_to(8 * SECOND, 15 * MS, begun) == 8 * SECOND
    end = offer(load, 300, 20, [8 * SECOND], begun)
    assert load.held_to(8 * SECOND, 15 * MS, end) == SECOND


@given(
    st.lists(
        st.tuples(st.integers(0, 10**10), st.integers(1, 64), st.none() | st.integers(1, 10**11)),
        max_size=60,
    ),
    st.sampled_from([0.0, 1e-9, 1e-6]),
    st.integers(1, 10**11),
    st.integers(0, 10**9),
)
def test_a_limit_is_never_raised_and_never_zero(
    arrivals: list[tuple[int, int, int | None]], capacity: float, limit: int, service_time: int
) -> None:
    load, now = OfferedLoad(), 1
    for gap, rows, has in arrivals:
        now += gap
        if has is None:
            load.came_without_limit(rows)
        else:
            load.came(rows, has, capacity, service_time, now)
        held = load.held_to(limit, service_time, now)
        assert 0 <= held <= limit
        assert held >= min(limit, 2 * service_time) or not load.overloaded or held >= SECOND
        assert load.overloaded or held == limit
        assert capacity or not load.overloaded
