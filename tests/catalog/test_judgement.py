"""A canary is promoted or taken back by what both versions were seen with, and is decided in bounded time."""

import pytest

from inferd.catalog.judgement import PATIENCE, CanaryRules, Judgement, Tally, Verdict

RULES = CanaryRules(share=0.1, seconds=60.0, requests=20)
WITH_OBJECTIVE = CanaryRules(share=0.1, seconds=60.0, requests=20, latency=0.05, percentile=99.0)


def judged(candidate: Tally, incumbent: Tally, now: float, rules: CanaryRules = RULES, waiting: int = 0) -> str:
    """What is decided ``now`` seconds after the begin."""
    judgement = Judgement(rules, incumbent, candidate)
    judgement.step(0.0, waiting)
    verdict = judgement.step(now, waiting)
    return "" if verdict is None else verdict.value


@pytest.mark.parametrize(
    ("candidate", "now", "verdict"),
    [
        (Tally(20), 59.9, ""),
        (Tally(20), 60.0, "promoted"),
        (Tally(19), 60.0, ""),
        (Tally(19), 60.0 * PATIENCE - 0.1, ""),
        (Tally(19), 60.0 * PATIENCE, "promoted"),
        (Tally(0), 60.0 * PATIENCE, "promoted"),
    ],
)
def test_it_takes_the_duration_and_the_requests_and_no_more_than_so_many_durations(
    candidate: Tally, now: float, verdict: str
) -> None:
    assert judged(candidate, Tally(180), now) == verdict


@pytest.mark.parametrize(
    ("candidate", "incumbent", "verdict"),
    [
        (Tally(3, failed=3), Tally(27), "failed"),
        (Tally(100, failed=10), Tally(900), "failed"),
        (Tally(100, failed=10), Tally(900, failed=90), ""),
        # So few tell nothing yet.
        (Tally(1, failed=1), Tally(3), ""),
        (Tally(1, failed=1), Tally(0), ""),
    ],
)
def test_failures_end_it_at_once_where_the_other_fails_less(candidate: Tally, incumbent: Tally, verdict: str) -> None:
    assert judged(candidate, incumbent, 1.0) == verdict


@pytest.mark.parametrize(
    ("incumbent", "verdict"), [(Tally(180), "failed"), (Tally(180, failed=9), "promoted"), (Tally(0), "failed")]
)
def test_who_fails_a_little_where_the_other_never_does_is_not_promoted(incumbent: Tally, verdict: str) -> None:
    assert judged(Tally(20, failed=1), incumbent, 60.0) == verdict


@pytest.mark.parametrize(
    ("rules", "candidate", "incumbent", "verdict"),
    [
        (WITH_OBJECTIVE, Tally(10, late=10), Tally(90), "worse"),
        (WITH_OBJECTIVE, Tally(100, late=20), Tally(900, late=9), "worse"),
        # The machine is to blame where both are late.
        (WITH_OBJECTIVE, Tally(100, late=20), Tally(900, late=180), ""),
        # As late as the objective allows.
        (WITH_OBJECTIVE, Tally(1000, late=10), Tally(9000), ""),
        # Without an objective what is late was refused or out of time.
        (RULES, Tally(100, late=20), Tally(900), "worse"),
        (RULES, Tally(100, late=1), Tally(900, late=9), ""),
    ],
)
def test_late_answers_end_it_where_the_other_keeps_its_time(
    rules: CanaryRules, candidate: Tally, incumbent: Tally, verdict: str
) -> None:
    assert judged(candidate, incumbent, 1.0, rules) == verdict


def test_what_answers_nothing_of_what_it_was_given_is_not_promoted() -> None:
    assert judged(Tally(0), Tally(100), 60.0 * PATIENCE, waiting=3) == "failed"


def test_it_says_what_was_seen() -> None:
    judgement = Judgement(RULES, Tally(27), Tally(3, failed=2, late=1))
    assert judgement.conclude(0) is Verdict.FAILED
    assert judgement.said() == (
        "of its requests 2 of 3 failed and 1 came late; of those to the version before 0 of 27 failed and 0 came late"
    )
