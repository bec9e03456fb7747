"""What measurements say: who is better, and how surely."""

import math
from random import Random

import pytest

from inferd.tuning.candidates import Candidate
from inferd.tuning.evidence import Evidence
from inferd.tuning.measurement import Window
from inferd.tuning.objective import Goal, Verdict

ONE, TWO, THREE = Candidate(1, 1, 1), Candidate(1, 2, 1), Candidate(2, 2, 2)
FAST, SLOW = Goal("throughput", 0.1), Goal("latency")


def window(answers: int, latency: float = 0.01, late: int = 0) -> Window:
    """A second with so many answers in time, and some that weren't by far."""
    return Window(1.0, (latency,) * answers + (1.0,) * late)


def evidence_of(goal: Goal, seen: dict[Candidate, list[Window]]) -> Evidence:
    evidence = Evidence(goal)
    for candidate, windows in seen.items():
        evidence.add(candidate, windows)
    return evidence


def ranked(evidence: Evidence) -> list[Candidate]:
    return [e.candidate for e in evidence.ranking()]


def test_only_answers_in_time_count() -> None:
    evidence = evidence_of(FAST, {ONE: [window(1000)], TWO: [window(1010, late=5)], THREE: [window(990, late=8)]})
    assert ranked(evidence) == [TWO, ONE, THREE]
    assert (evidence[TWO].goodput, evidence[TWO].throughput) == (1010, 1015)
    assert evidence[TWO].share == pytest.approx(1010 / 1015)
    assert (evidence[TWO].median, evidence[TWO].tail) == (0.01, 0.01)


def test_what_misses_the_objective_comes_after_all_that_may_keep_it_the_least_late_first() -> None:
    seen = {
        ONE: [window(5000, 0.3)],
        TWO: [window(9000, 0.2)],
        THREE: [window(10)],
    }
    evidence = evidence_of(FAST, seen)
    assert ranked(evidence) == [THREE, TWO, ONE]
    assert [e.eligible for e in evidence.ranking()] == [True, False, False]
    assert not evidence[TWO].may_beat(evidence[THREE])


def test_what_keeps_the_objective_as_far_as_seen_comes_before_what_may_keep_it() -> None:
    evidence = evidence_of(FAST, {ONE: [window(100)], TWO: [window(197, late=3)]})
    assert evidence[TWO].verdict is Verdict.UNSURE
    assert ranked(evidence) == [ONE, TWO]
    assert evidence[TWO].may_beat(evidence[ONE])
    assert not evidence[ONE].may_beat(evidence[TWO])


def test_the_lowest_median_is_best_where_latency_is_the_goal() -> None:
    evidence = evidence_of(SLOW, {ONE: [window(900, 0.02)], TWO: [window(100, 0.01)]})
    assert ranked(evidence) == [TWO, ONE]
    assert evidence[TWO].ahead(evidence[ONE]) == pytest.approx(0.5)


def test_of_two_that_are_as_good_the_one_that_takes_less_comes_first() -> None:
    assert ranked(evidence_of(FAST, {THREE: [window(100)], ONE: [window(100)]})) == [ONE, THREE]


def test_a_window_that_lost_the_machine_changes_nothing() -> None:
    evidence = evidence_of(FAST, {ONE: [window(100), window(40, late=10), window(100)], TWO: [window(90)]})
    assert evidence[ONE].goodput == 100
    assert evidence[ONE].share == 1
    assert evidence[ONE].windows == 3


def test_more_windows_leave_less_doubt() -> None:
    evidence = evidence_of(FAST, {ONE: [window(100)], TWO: [window(100)] * 16})
    assert evidence[TWO].doubt == pytest.approx(evidence[ONE].doubt / 4)
    assert evidence[ONE].low < evidence[TWO].low < 100 < evidence[TWO].high < evidence[ONE].high


def test_noise_is_read_off_all_candidates_together_and_not_off_disturbed_windows() -> None:
    chance, evidence = Random(3), Evidence(FAST)
    for streams in range(1, 41):
        windows = [window(round(1000 * streams * math.exp(chance.gauss(0, 0.08)))) for _ in range(3)]
        evidence.add(Candidate(streams, streams, streams), [*windows, window(400 * streams)][streams % 4 == 0 :])
    assert evidence.noise("goodput") == pytest.approx(0.08, rel=0.2)


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
    evidence = evidence_of(FAST, {ONE: [window(120)] * 4})
    evidence.refresh([ONE])
    evidence.add(ONE, [window(100)] * 2)
    assert evidence[ONE].goodput > 100
    evidence.add(ONE, [window(100)] * 2)
    assert evidence[ONE].goodput == 100
    assert evidence[ONE].windows == 8


def test_answers_that_share_a_run_share_their_fate() -> None:
    alone, together = Candidate(1, 1, 1, 1), Candidate(1, 1, 1, 64)
    evidence = evidence_of(FAST, {alone: [window(960, late=40)], together: [window(960, late=40)]})
    assert evidence[alone].verdict is Verdict.MISSES
    assert evidence[together].verdict is Verdict.UNSURE


def test_a_bad_moment_speaks_less_against_a_candidate_than_as_many_late_answers_all_the_time() -> None:
    evidence = evidence_of(FAST, {ONE: [window(970, late=30)] * 6, TWO: [window(820, late=180), *[window(1000)] * 5]})
    assert evidence[ONE].share == evidence[TWO].share
    assert evidence[ONE].verdict is Verdict.MISSES
    assert evidence[TWO].verdict is Verdict.UNSURE


def test_one_that_never_answers_is_the_worst() -> None:
    evidence = evidence_of(FAST, {ONE: [Window(1.0, ())] * 2, TWO: [window(5, 0.5)] * 2})
    assert evidence[ONE].verdict is Verdict.MISSES
    assert ranked(evidence)[-1] == ONE
    assert evidence[ONE].ahead(evidence[ONE]) == 0


def test_without_an_objective_every_answer_counts_however_late() -> None:
    evidence = evidence_of(Goal("throughput"), {ONE: [window(1000)], TWO: [window(900, late=200)]})
    assert ranked(evidence) == [TWO, ONE]
    assert [e.verdict for e in evidence.ranking()] == [Verdict.KEEPS] * 2
    assert evidence[TWO].goodput == evidence[TWO].throughput == 1100


def test_a_candidate_that_failed_is_forgotten() -> None:
    evidence = evidence_of(FAST, {ONE: [window(1)], TWO: [window(1)]})
    evidence.drop(ONE)
    assert ranked(evidence) == [TWO]
    assert ONE not in evidence
