"""Which side takes over: by the results of both, beyond chance."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.rollout.policy import RolloutDecision
from inferd.rollout.trial import Stage, Trial

STAGES = (Stage(0.0, 50, 5.0), Stage(0.1, 10, 10.0), Stage(0.5, 100, 20.0))

Latency = Callable[[random.Random], float | None]


def run(incumbent: Latency, candidate: Latency, latency: float | None = None, rate: float = 200.0) -> RolloutDecision:
    """The decision where each request goes to either side by its share; ``rate`` a second."""
    chance, trial, now = random.Random(3), Trial(latency, stages=STAGES), 0.0
    while (decision := trial.step(now)) is None:
        now += 1 / rate
        if chance.random() < trial.share:
            trial.add("candidate", candidate(chance))
        else:
            trial.add("incumbent", incumbent(chance))
    return decision


def around(seconds: float) -> Latency:
    return lambda chance: seconds * chance.lognormvariate(0, 0.2)


def failing(part: float, otherwise: Latency) -> Latency:
    return lambda chance: None if chance.random() < part else otherwise(chance)


def test_one_that_is_as_good_takes_over() -> None:
    assert run(around(0.01), around(0.01)) is RolloutDecision.PROMOTED


def test_one_that_is_slower_within_the_objective_takes_over() -> None:
    # More streams: each answer takes longer, more of them come.
    assert run(around(0.01), around(0.03), latency=0.1) is RolloutDecision.PROMOTED


@pytest.mark.parametrize("latency", [None, 0.02])
def test_one_whose_answers_are_late_does_not(latency: float | None) -> None:
    assert run(around(0.01), around(0.04), latency) is RolloutDecision.WORSE


@pytest.mark.parametrize("part", [0.3, 1.0])
def test_one_that_fails_does_not(part: float) -> None:
    assert run(around(0.01), failing(part, around(0.01))) is RolloutDecision.FAILED


def test_requests_that_fail_on_both_sides_are_no_fault_of_the_candidate() -> None:
    assert run(failing(0.2, around(0.01)), failing(0.2, around(0.01))) is RolloutDecision.PROMOTED


def test_where_nothing_comes_the_measurements_stand() -> None:
    trial = Trial(None, stages=STAGES)
    assert [trial.step(now) for now in (0.0, 4.9, 5.0)] == [None, None, RolloutDecision.PROMOTED]


def test_where_little_comes_time_ends_the_stages() -> None:
    trial, ends = Trial(None, stages=STAGES), []
    for now in (0.0, 4.9, 5.0, 14.9, 15.0, 34.9, 35.0):
        trial.add("incumbent", 0.01)
        ends.append((trial.step(now), trial.share))
    assert ends == [*[(None, 0.0)] * 2, *[(None, 0.1)] * 2, *[(None, 0.5)] * 2, (RolloutDecision.PROMOTED, 0.5)]


def test_the_share_grows_with_the_stage() -> None:
    trial = Trial(None, stages=STAGES)
    trial.step(0.0)
    assert trial.share == 0
    for _ in range(50):
        trial.add("incumbent", 0.01)
    trial.step(0.5)
    assert trial.share == 0.1
    for _ in range(10):
        trial.add("candidate", 0.01)
        trial.add("incumbent", 0.01)
    trial.step(1.0)
    assert trial.share == 0.5
    assert trial.candidate.ended == trial.incumbent.ended == 0


@pytest.mark.parametrize(
    ("candidate", "decision"),
    [
        ([], RolloutDecision.PROMOTED),
        ([0.01] * 20, RolloutDecision.PROMOTED),
        ([0.1] * 20, RolloutDecision.WORSE),
        ([None] * 20, RolloutDecision.FAILED),
    ],
)
def test_what_was_seen_decides_where_the_incumbent_does_not_answer_any_more(
    candidate: list[float | None], decision: RolloutDecision
) -> None:
    trial = Trial(None, stages=STAGES[1:])
    for _ in range(20):
        trial.add("incumbent", 0.01)
    for latency in candidate:
        trial.add("candidate", latency)
    assert trial.conclude(0) is decision


ANSWER = st.tuples(st.sampled_from(["incumbent", "candidate"]), st.none() | st.floats(0.001, 10))


@given(st.lists(ANSWER, max_size=300), st.none() | st.floats(0.01, 5), st.floats(0.01, 1))
def test_every_trial_ends_by_time_at_the_latest(
    answers: list[tuple[str, float | None]], latency: float | None, step: float
) -> None:
    trial, now = Trial(latency, stages=STAGES), 0.0
    for side, seconds in answers:
        trial.add(side, seconds)  # type: ignore[arg-type]
        if trial.step(now) is not None:
            return
        now += step
    while (decision := trial.step(now)) is None:
        # Each stage is left at the first look after its end.
        assert now <= 35 + len(STAGES) * 1.0 + 1
        now += 1
    assert decision in (RolloutDecision.PROMOTED, RolloutDecision.WORSE, RolloutDecision.FAILED)


def test_one_that_slows_the_other_down_as_well_does_not() -> None:
    trial, now = Trial(None, stages=STAGES), 0.0
    while (decision := trial.step(now)) is None:
        seconds = 0.01 if not trial.share else 0.1
        trial.add("incumbent", seconds)
        if trial.share:
            trial.add("candidate", seconds)
        now += 0.01
    assert decision is RolloutDecision.WORSE


@given(st.lists(st.floats(0.001, 10), min_size=1, max_size=200))
def test_a_candidate_that_answers_as_the_incumbent_does_is_never_turned_away(latencies: list[float]) -> None:
    trial = Trial(None, stages=STAGES[1:])
    for now, seconds in enumerate(latencies):
        trial.add("candidate", seconds)
        trial.add("incumbent", seconds)
        assert trial.step(now / 1000) in (None, RolloutDecision.PROMOTED)
