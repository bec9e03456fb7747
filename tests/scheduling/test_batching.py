"""How many rows run together, and how long they wait for each other."""

from inferd.scheduling.batching import BatchRule, BatchSize
from inferd.scheduling.service_time import ServiceTimes


def known(*seen: tuple[int, float]) -> ServiceTimes:
    times = ServiceTimes()
    for rows, duration in seen:
        times.seed(rows, duration)
    return times


EIGHT = BatchRule(8)


def test_all_rows_run_together_if_that_costs_nothing() -> None:
    assert BatchSize(EIGHT).choose(known((1, 100), (8, 100)), 20, 1, None) == 8


def test_rows_run_alone_if_batching_gains_nothing() -> None:
    assert BatchSize(EIGHT).choose(known((1, 100), (8, 800)), 20, 1, None) == 1


def test_a_run_fits_the_time_of_its_first_request() -> None:
    assert BatchSize(EIGHT).choose(known((1, 100), (2, 110), (8, 400)), 20, 1, 200) == 2


def test_free_slots_share_the_waiting_rows() -> None:
    assert BatchSize(EIGHT).choose(known(), 8, 2, None) == 4


def test_runs_have_preferred_sizes_if_enough_rows_wait() -> None:
    size = BatchSize(BatchRule(8, preferred=(2, 4)))
    assert [size.choose(known(), waiting, 1, None) for waiting in (2, 3, 7)] == [2, 2, 4]


def test_a_larger_size_measured_badly_is_tried_again_now_and_then() -> None:
    size, times = BatchSize(EIGHT), known((1, 100), (8, 8000))
    assert {size.choose(times, 20, 1, None) for _ in range(1000)} == {1, 2}


def test_an_unknown_size_is_tried_soon() -> None:
    size, times = BatchSize(EIGHT), known((1, 100))
    seen: list[int] = []
    while len(seen) < 40:
        seen.append(size.choose(times, 20, 1, None))
        times.learn(seen[-1], 100)
    assert seen[-1] == 8


def test_rows_wait_up_to_the_delay_for_a_full_batch() -> None:
    size = BatchSize(BatchRule(8, max_delay=50, preferred=(4,)))
    assert size.wait_to_fill(known(), 1, 1000, None) == 1050
    assert size.wait_to_fill(known(), 1, 1000, 30) == 1030
    assert size.wait_to_fill(known(), 4, 1000, None) is None
    assert size.wait_to_fill(known(), 8, 1000, None) is None


def test_no_request_waits_to_fill_a_batch_without_a_delay() -> None:
    assert BatchSize(EIGHT).wait_to_fill(known(), 1, 1000, None) is None
