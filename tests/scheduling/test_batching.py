"""How many rows run together, and how long they wait for each other."""

from inferd.scheduling.batching import BatchRule, BatchSize
from inferd.scheduling.service_time import ServiceTimes


def known(*seen: tuple[int, float]) -> ServiceTimes:
    times = ServiceTimes()
    for rows, duration in seen:
        times.seed(rows, duration)
    return times


EIGHT = BatchRule(8)


def test_all_that_may_run_together_does_where_that_costs_nothing() -> None:
    assert BatchSize(EIGHT).choose(known((1, 100), (8, 100)), 20, 1, None) == 8


def test_rows_run_alone_where_batching_gains_nothing() -> None:
    assert BatchSize(EIGHT).choose(known((1, 100), (8, 800)), 20, 1, None) == 1


def test_a_run_is_no_longer_than_its_first_request_has_time_for() -> None:
    assert BatchSize(EIGHT).choose(known((1, 100), (2, 110), (8, 400)), 20, 1, 200) == 2


def test_free_slots_share_what_waits() -> None:
    assert BatchSize(EIGHT).choose(known(), 8, 2, None) == 4


def test_preferred_sizes_are_kept_to_where_enough_waits() -> None:
    size = BatchSize(BatchRule(8, preferred=(2, 4)))
    assert [size.choose(known(), waiting, 1, None) for waiting in (2, 3, 7)] == [2, 2, 4]


def test_a_larger_size_measured_badly_is_tried_again_now_and_then() -> None:
    size, times = BatchSize(EIGHT), known((1, 100), (8, 8000))
    assert {size.choose(times, 20, 1, None) for _ in range(1000)} == {1, 2}


def test_a_size_that_nothing_is_known_of_is_tried_soon() -> None:
    size, times = BatchSize(EIGHT), known((1, 100))
    seen: list[int] = []
    while len(seen) < 40:
        seen.append(size.choose(times, 20, 1, None))
        times.learn(seen[-1], 100)
    assert seen[-1] == 8


def test_rows_wait_to_fill_a_batch_up_to_the_delay_and_not_once_enough_are_there() -> None:
    size = BatchSize(BatchRule(8, max_delay=50, preferred=(4,)))
    assert size.wait_to_fill(known(), 1, 1000, None) == 1050
    assert size.wait_to_fill(known(), 1, 1000, 30) == 1030
    assert size.wait_to_fill(known(), 4, 1000, None) is None
    assert size.wait_to_fill(known(), 8, 1000, None) is None


def test_no_request_waits_to_fill_a_batch_without_a_delay() -> None:
    assert BatchSize(EIGHT).wait_to_fill(known(), 1, 1000, None) is None
