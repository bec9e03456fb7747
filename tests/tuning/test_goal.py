"""Whether an objective is kept, and how much evidence that takes."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.tuning.goal import Goal, GoalVerdict, judge, share_bounds


def test_few_answers_say_nothing_either_way() -> None:
    assert judge(20, 20, 20, 99) is GoalVerdict.UNSURE
    assert judge(97, 100, 100, 99) is GoalVerdict.UNSURE


def test_many_answers_say_what_is_so() -> None:
    assert judge(999, 1000, 1000, 99) is GoalVerdict.KEEPS
    assert judge(960, 1000, 1000, 99) is GoalVerdict.MISSES


def test_answers_of_one_run_are_one_piece_of_evidence() -> None:
    assert judge(960, 1000, 1000, 99) is GoalVerdict.MISSES
    assert judge(960, 1000, 1000 / 32, 99) is GoalVerdict.UNSURE


def test_every_answer_in_time_is_disproved_by_one() -> None:
    assert judge(9999, 10000, 10000, 100) is GoalVerdict.MISSES
    assert judge(10000, 10000, 10000, 100) is GoalVerdict.UNSURE


@given(st.floats(0, 1), st.just(0) | st.floats(0.01, 1e6), st.floats(0.5, 4))
def test_bounds_are_shares_around_the_one_seen(share: float, trials: float, z: float) -> None:
    low, high = share_bounds(share, trials, z)
    assert -1e-12 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1 + 1e-12


def test_a_candidate_that_keeps_the_objective_is_seldom_ruled_out() -> None:
    chance, wrong = Random(5), 0
    for _ in range(2000):
        in_time = sum(chance.random() < 0.99 for _ in range(200))
        wrong += judge(in_time, 200, 200, 99) is GoalVerdict.MISSES
    assert wrong <= 2000 * 0.03


@pytest.mark.parametrize(("latency", "percentile"), [(0.0, 99.0), (-1.0, 99.0), (None, 0.0), (None, 101.0)])
def test_a_goal_that_makes_no_sense_is_refused(latency: float | None, percentile: float) -> None:
    with pytest.raises(ValueError, match="not"):
        Goal("throughput", latency, percentile)
