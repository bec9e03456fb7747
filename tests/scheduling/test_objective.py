"""How late a response may be promised."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.scheduling.objective import LatencyBudget, Objective

LIMIT = 1000


def budget(percentile: float = 99.0) -> LatencyBudget:
    return LatencyBudget(Objective(LIMIT, percentile))


def test_a_request_within_the_budget_is_accepted_and_a_later_one_is_not() -> None:
    one = budget()
    assert one.admits(one.share * LIMIT, 10, LIMIT)
    assert not one.admits(one.share * LIMIT + 1, 10, LIMIT)


def test_late_responses_lower_the_budget_but_never_to_zero() -> None:
    one = budget()
    before = one.share
    one.answered(1000, LIMIT)
    assert one.share < before
    for _ in range(1000):
        one.answered(1000, LIMIT)
    assert one.share == 0.1


def test_responses_in_time_raise_the_budget_but_never_past_the_objective() -> None:
    one = budget(50.0)
    for _ in range(50):
        one.answered(1000, LIMIT)
    for _ in range(5000):
        one.answered(10, LIMIT)
    assert 0.8 < one.share < 1


def test_the_budget_is_stable_while_half_as_many_are_late_as_allowed() -> None:
    one = budget()
    for _ in range(10):
        one.answered(1000, LIMIT)
    before = one.share
    for n in range(20 * 200):
        one.answered(1000 if n % 200 == 0 else 10, LIMIT)
    assert one.share == pytest.approx(before, rel=0.02)


def test_a_run_longer_than_the_objective_is_accepted_if_it_hardly_waits() -> None:
    one = budget()
    assert one.admits(5010, 5000, LIMIT)
    assert not one.admits(6000, 5000, LIMIT)


@given(
    st.none() | st.integers(1, 10**10),
    st.integers(0, 10**10),
    st.none() | st.integers(-(10**9), 10**11),
)
def test_the_limit_is_the_objective_or_what_a_nearer_deadline_leaves(
    objective: int | None, since: int, left: int | None
) -> None:
    one = LatencyBudget(Objective(objective) if objective is not None else None)
    deadline = None if left is None else since + left
    known = [n for n in (objective, None if left is None else max(1, left)) if n is not None]
    assert one.limit(since, deadline) == min(known, default=0)


def test_a_run_that_lost_its_client_early_does_not_change_the_budget() -> None:
    one = budget()
    before = one.share
    one.abandoned(500, LIMIT)
    assert one.share == before
    one.abandoned(1000, LIMIT)
    assert one.share < before


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 10**6), st.integers(1, 10**6)), max_size=300))
def test_the_share_stays_within_its_bounds_and_starting_is_easier_than_admission(
    answers: list[tuple[bool, int, int]],
) -> None:
    one = LatencyBudget()
    for answered, latency, limit in answers:
        (one.answered if answered else one.abandoned)(latency, limit)
        assert 0.1 <= one.share <= 0.85
        for forecast in (limit // 10, limit // 2, limit):
            assert not one.admits(forecast, 1, limit) or one.tolerates(forecast, 1, limit)
