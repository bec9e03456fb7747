"""How late an answer may be promised."""

import pytest

from inferd.scheduling.objective import LatencyBudget, Objective


def test_what_fits_the_budget_is_taken_and_nothing_later() -> None:
    budget = LatencyBudget(Objective(1000))
    assert budget.admits(budget.nanoseconds, 10)
    assert not budget.admits(budget.nanoseconds + 1, 10)


def test_late_answers_lower_the_budget_and_never_to_nothing() -> None:
    budget = LatencyBudget(Objective(1000))
    before = budget.nanoseconds
    budget.answered(1000)
    assert budget.nanoseconds < before
    for _ in range(1000):
        budget.answered(1000)
    assert budget.nanoseconds == 100


def test_answers_in_time_raise_the_budget_and_never_past_the_objective() -> None:
    budget = LatencyBudget(Objective(1000, 50.0))
    for _ in range(50):
        budget.answered(1000)
    for _ in range(5000):
        budget.answered(10)
    assert 800 < budget.nanoseconds < 1000


def test_the_budget_rests_while_half_as_many_are_late_as_may_be() -> None:
    budget = LatencyBudget(Objective(1000, 99.0))
    for _ in range(10):
        budget.answered(1000)
    before = budget.nanoseconds
    for n in range(20 * 200):
        budget.answered(1000 if n % 200 == 0 else 10)
    assert budget.nanoseconds == pytest.approx(before, rel=0.02)


def test_a_run_longer_than_the_objective_is_taken_while_it_need_hardly_wait() -> None:
    budget = LatencyBudget(Objective(1000))
    assert budget.admits(5010, 5000)
    assert not budget.admits(6000, 5000)
