"""How a choice is explained."""

import math

from inferd.tuning.candidates import Candidate
from inferd.tuning.estimates import Estimates
from inferd.tuning.goal import Goal
from inferd.tuning.measurement import MeasurementWindow
from inferd.tuning.outcome import Outcome, conclude

A, B, C = (Candidate(1, 4, requests) for requests in (1, 2, 4))
IN_TIME = Goal("throughput", 0.02)


def conclusion(goal: Goal, seen: dict[Candidate, tuple[int, float]]) -> Outcome:
    """From a rate and a latency of each; A and B are the hints' answers."""
    evidence = Estimates(goal)
    for candidate, (rate, latency) in seen.items():
        evidence.add(candidate, [MeasurementWindow(1.0, (latency,) * rate)] * 4)
    return conclude(goal, evidence.ranking(), evidence.ranking(), [A, B], {})


def test_the_winner_is_explained_next_to_the_seeds() -> None:
    outcome = conclusion(IN_TIME, {A: (500, 0.01), B: (900, 0.05), C: (750, 0.015)})
    assert outcome.winner is not None
    assert outcome.winner.candidate == C
    assert not outcome.out_of_reach
    assert outcome.reason == (
        "1 stream, 4 threads, 4 requests, batch 1, async gives 750 answers/s "
        f"({outcome.winner.low:.4g} to {outcome.winner.high:.4g}), "
        "100 % of the answers within 20 ms; 1.50 times as good as the LATENCY hint's answer; "
        "the THROUGHPUT hint's answer misses the objective"
    )
    assert [(g.seed, g.ratio, g.eligible) for g in outcome.gains] == [(A, 1.5, True), (B, math.inf, False)]


def test_without_an_objective_throughput_decides_and_that_is_said() -> None:
    outcome = conclusion(Goal("throughput"), {A: (500, 0.01), B: (0, 0.0), C: (750, 0.5)})
    assert outcome.winner is not None
    assert outcome.winner.candidate == C
    assert not outcome.out_of_reach
    assert outcome.reason == (
        "no objective: chosen by throughput, regardless of latency; "
        "1 stream, 4 threads, 4 requests, batch 1, async gives 750 answers/s "
        f"({outcome.winner.low:.4g} to {outcome.winner.high:.4g}); 1.50 times as good as the LATENCY hint's answer; "
        "the THROUGHPUT hint's answer answered nothing"
    )


def test_without_an_objective_nothing_is_out_of_reach() -> None:
    outcome = conclusion(Goal("throughput"), {A: (0, 0.0), B: (0, 0.0)})
    assert not outcome.out_of_reach
    assert outcome.reason.startswith(
        "no objective: chosen by throughput, regardless of latency; no candidate responded"
    )


def test_an_objective_out_of_reach_is_said_and_what_comes_nearest() -> None:
    outcome = conclusion(IN_TIME, {A: (500, 0.03), B: (900, 0.05), C: (750, 0.04)})
    assert outcome.winner is not None
    assert outcome.winner.candidate == A
    assert outcome.out_of_reach
    assert outcome.reason.startswith("no measured candidate answers 99 % within 20 ms; 1 stream, 4 threads, 1 request")
    assert "comes closest, with 30 ms" in outcome.reason


def test_too_few_answers_to_be_sure_are_said() -> None:
    assert "based on few responses" in conclusion(IN_TIME, {A: (20, 0.01)}).reason


def test_gains_in_latency_are_of_medians() -> None:
    outcome = conclusion(Goal("latency"), {A: (100, 0.01), B: (900, 0.05)})
    assert outcome.reason.startswith(
        "no objective: chosen by median latency; "
        "1 stream, 4 threads, 1 request, batch 1, async has the lowest median latency, 10 ms; it is"
    )
    assert [g.ratio for g in outcome.gains] == [1.0, 5.0]


def test_that_nothing_ran_is_said_with_a_reason() -> None:
    outcome = conclude(IN_TIME, [], [], [A], {A: "no such instruction"})
    assert outcome.winner is None
    assert outcome.reason == "nothing ran; 1 stream, 4 threads, 1 request, batch 1, async: no such instruction"
    assert outcome.gains == ()


def test_two_that_answered_nothing_are_as_good_as_each_other() -> None:
    outcome = conclusion(IN_TIME, {A: (0, 0.0), B: (0, 0.0)})
    assert [g.ratio for g in outcome.gains] == [1.0, 1.0]
    assert outcome.out_of_reach
    assert outcome.reason.startswith("no candidate responded")
