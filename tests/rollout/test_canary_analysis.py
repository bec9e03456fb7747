"""A canary is promoted or rolled back by the results of both versions, within bounded time."""

import pytest

from inferd.rollout.canary_analysis import PATIENCE, CanaryAnalysis, CanaryCounts, CanaryRules
from inferd.rollout.policy import RolloutDecision

RULES = CanaryRules(share=0.1, seconds=60.0, requests=20)
WITH_OBJECTIVE = CanaryRules(share=0.1, seconds=60.0, requests=20, latency=0.05, percentile=99.0)


def judged(
    candidate: CanaryCounts, incumbent: CanaryCounts, now: float, rules: CanaryRules = RULES, waiting: int = 0
) -> str:
    """What is decided ``now`` seconds after the begin."""
    analysis = CanaryAnalysis(rules, incumbent, candidate)
    analysis.step(0.0, waiting)
    verdict = analysis.step(now, waiting)
    return "" if verdict is None else verdict.value


@pytest.mark.parametrize(
    ("candidate", "now", "verdict"),
    [
        (CanaryCounts(20), 59.9, ""),
        (CanaryCounts(20), 60.0, "promoted"),
        (CanaryCounts(19), 60.0, ""),
        (CanaryCounts(19), 60.0 * PATIENCE - 0.1, ""),
        (CanaryCounts(19), 60.0 * PATIENCE, "promoted"),
        (CanaryCounts(0), 60.0 * PATIENCE, "promoted"),
    ],
)
def test_it_takes_the_duration_and_the_requests_and_no_more_than_so_many_durations(
    candidate: CanaryCounts, now: float, verdict: str
) -> None:
    assert judged(candidate, CanaryCounts(180), now) == verdict


@pytest.mark.parametrize(
    ("candidate", "incumbent", "verdict"),
    [
        (CanaryCounts(3, failed=3), CanaryCounts(27), "failed"),
        (CanaryCounts(100, failed=10), CanaryCounts(900), "failed"),
        (CanaryCounts(100, failed=10), CanaryCounts(900, failed=90), ""),
        # So few tell nothing yet.
        (CanaryCounts(1, failed=1), CanaryCounts(3), ""),
        (CanaryCounts(1, failed=1), CanaryCounts(0), ""),
    ],
)
def test_failures_end_it_at_once_where_the_other_fails_less(
    candidate: CanaryCounts, incumbent: CanaryCounts, verdict: str
) -> None:
    assert judged(candidate, incumbent, 1.0) == verdict


@pytest.mark.parametrize(
    ("incumbent", "verdict"),
    [(CanaryCounts(180), "failed"), (CanaryCounts(180, failed=9), "promoted"), (CanaryCounts(0), "failed")],
)
def test_who_fails_a_little_where_the_other_never_does_is_not_promoted(incumbent: CanaryCounts, verdict: str) -> None:
    assert judged(CanaryCounts(20, failed=1), incumbent, 60.0) == verdict


@pytest.mark.parametrize(
    ("rules", "candidate", "incumbent", "verdict"),
    [
        (WITH_OBJECTIVE, CanaryCounts(10, late=10), CanaryCounts(90), "worse"),
        (WITH_OBJECTIVE, CanaryCounts(100, late=20), CanaryCounts(900, late=9), "worse"),
        # The machine is to blame where both are late.
        (WITH_OBJECTIVE, CanaryCounts(100, late=20), CanaryCounts(900, late=180), ""),
        # As late as the objective allows.
        (WITH_OBJECTIVE, CanaryCounts(1000, late=10), CanaryCounts(9000), ""),
        # Without an objective what is late was refused or out of time.
        (RULES, CanaryCounts(100, late=20), CanaryCounts(900), "worse"),
        (RULES, CanaryCounts(100, late=1), CanaryCounts(900, late=9), ""),
    ],
)
def test_late_answers_end_it_where_the_other_keeps_its_time(
    rules: CanaryRules, candidate: CanaryCounts, incumbent: CanaryCounts, verdict: str
) -> None:
    assert judged(candidate, incumbent, 1.0, rules) == verdict


def test_what_answers_nothing_of_what_it_was_given_is_not_promoted() -> None:
    assert judged(CanaryCounts(0), CanaryCounts(100), 60.0 * PATIENCE, waiting=3) == "failed"


def test_it_says_what_was_seen() -> None:
    analysis = CanaryAnalysis(RULES, CanaryCounts(27), CanaryCounts(3, failed=2, late=1))
    assert analysis.conclude(0) is RolloutDecision.FAILED
    assert analysis.summary() == (
        "new version: 2 of 3 requests failed, 1 late; current version: 0 of 27 requests failed, 0 late"
    )
