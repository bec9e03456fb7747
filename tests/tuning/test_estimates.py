"""Conclusions from measurements: which candidate is better, and with which confidence."""

import math
from random import Random

import pytest

from inferd.tuning.candidates import Candidate
from inferd.tuning.estimates import Estimates
from inferd.tuning.goal import Goal, GoalVerdict
from inferd.tuning.measurement import MeasurementWindow

ONE, TWO, THREE = Candidate(1, 1, 1), Candidate(1, 2, 1), Candidate(2, 2, 2)
FAST, SLOW = Goal("throughput", 0.1), Goal("latency")


def window(answers: int, latency: float = 0.01, late: int = 0) -> MeasurementWindow:
    """A second with so many answers in time, and some that weren't by far."""
    return MeasurementWindow(1.0, (latency,) * answers + (1.0,) * late)


def evidence_of(goal: Goal, seen: dict[Candidate, list[MeasurementWindow]]) -> Estimates:
    estimates = Estimates(goal)
    for candidate, windows in seen.items():
        estimates.add(candidate, windows)
    return estimates


def ranked(estimates: Estimates) -> list[Candidate]:
    return [e.candidate for e in estimates.ranking()]


def test_only_answers_in_time_count() -> None:
    estimates = evidence_of(FAST, {ONE: [window(1000)], TWO: [window(1010, late=5)], THREE: [window(990, late=8)]})
    assert ranked(estimates) == [TWO, ONE, THREE]
    assert (estimates[TWO].goodput, estimates[TWO].throughput) == (1010, 1015)
    assert estimates[TWO].share == pytest.approx(1010 / 1015)
    assert (estimates[TWO].median, estimates[TWO].tail) == (0.01, 0.01)


def test_what_misses_the_objective_comes_after_all_that_may_keep_it_the_least_late_first() -> None:
    seen = {
        ONE: [window(5000, 0.3)],
        TWO: [window(9000, 0.2)],
        THREE: [window(10)],
    }
    estimates = evidence_of(FAST, seen)
    assert ranked(estimates) == [THREE, TWO, ONE]
    assert [e.eligible for e in estimates.ranking()] == [True, False, False]
    assert not estimates[TWO].may_beat(estimates[THREE])


def test_what_keeps_the_objective_as_far_as_seen_comes_before_what_may_keep_it() -> None:
    estimates = evidence_of(FAST, {ONE: [window(100)], TWO: [window(197, late=3)]})
    assert estimates[TWO].verdict is GoalVerdict.UNSURE
    assert ranked(estimates) == [ONE, TWO]
    assert estimates[TWO].may_beat(estimates[ONE])
    assert not estimates[ONE].may_beat(estimates[TWO])


def test_the_lowest_median_is_best_where_latency_is_the_goal() -> None:
    estimates = evidence_of(SLOW, {ONE: [window(900, 0.02)], TWO: [window(100, 0.01)]})
    assert ranked(estimates) == [TWO, ONE]
    assert estimates[TWO].ahead(estimates[ONE]) == pytest.approx(0.5)


def test_of_two_that_are_as_good_the_one_that_takes_less_comes_first() -> None:
    assert ranked(evidence_of(FAST, {THREE: [window(100)], ONE: [window(100)]})) == [ONE, THREE]


def test_a_window_that_lost_the_machine_changes_nothing() -> None:
    estimates = evidence_of(FAST, {ONE: [window(100), window(40, late=10), window(100)], TWO: [window(90)]})
    assert estimates[ONE].goodput == 100
    assert estimates[ONE].share == 1
    assert estimates[ONE].windows == 3


def test_more_windows_leave_less_doubt() -> None:
    estimates = evidence_of(FAST, {ONE: [window(100)], TWO: [window(100)] * 16})
    assert estimates[TWO].doubt == pytest.approx(estimates[ONE].doubt / 4)
    assert estimates[ONE].low < estimates[TWO].low < 100 < estimates[TWO].high < estimates[ONE].high


def test_noise_is_read_off_all_candidates_together_and_not_off_disturbed_windows() -> None:
    chance, estimates = Random(3), Estimates(FAST)
    for streams in range(1, 41):
        windows = [window(round(1000 * streams * math.exp(chance.gauss(0, 0.08)))) for _ in range(3)]
        estimates.add(Candidate(streams, streams, streams), [*windows, window(400 * streams)][streams % 4 == 0 :])
    assert estimates.noise("goodput") == pytest.approx(0.08, rel=0.2)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = []
    for seed in range(300):
        chance = Random(seed)
        seen = {
            Candidate(1, 1, n): [window(round(5000 * math.exp(chance.gauss(0, 0.05)))) for _ in range(4)]
            for n in range(1, 6)
        }
        estimate = evidence_of(FAST, seen)[ONE]
        held.append(estimate.low <= 5000 <= estimate.high)
    assert sum(held) / len(held) >= 0.92


def test_windows_taken_side_by_side_outweigh_those_before() -> None:
    estimates = evidence_of(FAST, {ONE: [window(120)] * 4})
    estimates.refresh([ONE])
    estimates.add(ONE, [window(100)] * 2)
    assert estimates[ONE].goodput > 100
    estimates.add(ONE, [window(100)] * 2)
    assert estimates[ONE].goodput == 100
    assert estimates[ONE].windows == 8


def test_answers_that_share_a_run_share_their_fate() -> None:
    alone, together = Candidate(1, 1, 1, 1), Candidate(1, 1, 1, 64)
    estimates = evidence_of(FAST, {alone: [window(960, late=40)], together: [window(960, late=40)]})
    assert estimates[alone].verdict is GoalVerdict.MISSES
    assert estimates[together].verdict is GoalVerdict.UNSURE


def test_a_bad_moment_speaks_less_against_a_candidate_than_as_many_late_answers_all_the_time() -> None:
    estimates = evidence_of(FAST, {ONE: [window(970, late=30)] * 6, TWO: [window(820, late=180), *[window(1000)] * 5]})
    assert estimates[ONE].share == estimates[TWO].share
    assert estimates[ONE].verdict is GoalVerdict.MISSES
    assert estimates[TWO].verdict is GoalVerdict.UNSURE


def test_one_that_never_answers_is_the_worst() -> None:
    estimates = evidence_of(FAST, {ONE: [MeasurementWindow(1.0, ())] * 2, TWO: [window(5, 0.5)] * 2})
    assert estimates[ONE].verdict is GoalVerdict.MISSES
    assert ranked(estimates)[-1] == ONE
    assert estimates[ONE].ahead(estimates[ONE]) == 0


def test_without_an_objective_every_answer_counts_however_late() -> None:
    estimates = evidence_of(Goal("throughput"), {ONE: [window(1000)], TWO: [window(900, late=200)]})
    assert ranked(estimates) == [TWO, ONE]
    assert [e.verdict for e in estimates.ranking()] == [GoalVerdict.KEEPS] * 2
    assert estimates[TWO].goodput == estimates[TWO].throughput == 1100


def test_a_candidate_that_failed_is_forgotten() -> None:
    estimates = evidence_of(FAST, {ONE: [window(1)], TWO: [window(1)]})
    estimates.drop(ONE)
    assert ranked(estimates) == [TWO]
    assert ONE not in estimates
