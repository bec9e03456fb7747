"""What is learnt about how long runs take, by their rows."""

import pytest

from inferd.scheduling.service_time import ServiceTimes


def known(*seen: tuple[int, float]) -> ServiceTimes:
    times = ServiceTimes()
    for rows, duration in seen:
        times.seed(rows, duration)
    return times


def test_there_is_no_expectation_before_the_first_run() -> None:
    assert (known().expected(3), known().fastest(3)) == (0.0, 0.0)


def test_sizes_between_known_ones_are_expected_in_proportion() -> None:
    times = known((8, 800), (2, 200), (4, 300))
    assert times.sizes == [2, 4, 8]
    assert [times.expected(n) for n in (1, 2, 3, 4, 6, 8)] == [200, 200, 250, 300, 550, 800]


def test_beyond_the_largest_size_each_row_costs_the_same() -> None:
    assert known((1, 100), (4, 200)).expected(12) == 600


def test_the_fastest_run_is_remembered_and_slowly_forgotten() -> None:
    times = known((1, 100))
    times.learn(1, 60)
    assert times.fastest(1) == 60
    for _ in range(1000):
        times.learn(1, 500)
    assert times.fastest(1) == pytest.approx(500, rel=0.01)


def test_the_slowest_run_of_any_size_is_remembered_and_slowly_forgotten() -> None:
    times = known((1, 100), (4, 300))
    assert times.slowest == 300
    times.learn(1, 900)
    assert times.slowest == 900
    for _ in range(1000):
        times.learn(2, 200)
    assert times.slowest == pytest.approx(200, rel=0.01)


def test_an_unfinished_run_raises_the_average_but_not_the_fastest() -> None:
    times = known((1, 100))
    times.learn_at_least(1, 50)
    assert times.expected(1) == 100
    for _ in range(100):
        times.learn_at_least(1, 500)
    assert times.expected(1) == pytest.approx(500, rel=0.01)
    assert times.fastest(1) == 100


def test_an_unfinished_first_run_rules_nothing_out() -> None:
    times = known()
    times.learn_at_least(2, 500)
    assert (times.expected(2), times.fastest(2)) == (500, 0)
    times.learn(2, 300)
    assert times.fastest(2) == 300
