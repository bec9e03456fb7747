"""The burn rate of an error budget: what it is of any counts, and that it counts what the alerts count."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from inferd.metrics.error_budget import NOT_JUDGED, UNANSWERED, burn_rate, unanswered
from tests.conftest import ROOT

OBJECTIVES = st.floats(0.5, 0.99999)
OUTCOMES = st.sampled_from(sorted({"ok", *UNANSWERED, *NOT_JUDGED}))
COUNTS = st.dictionaries(OUTCOMES, st.integers(0, 10**6))


@pytest.mark.parametrize(
    ("bad", "total", "objective", "expected"),
    [
        (0, 1000, 0.99, 0.0),
        (5, 1000, 0.99, 0.5),
        (10, 1000, 0.99, 1.0),
        (1, 1000, 0.999, 1.0),
        (30, 1000, 0.99, 3.0),
        (1000, 1000, 0.99, 100.0),
    ],
)
def test_a_burn_rate_of_one_is_the_rate_that_the_objective_allows(
    bad: float, total: float, objective: float, expected: float
) -> None:
    assert burn_rate(bad, total, objective) == pytest.approx(expected, rel=1e-12)


@given(st.integers(1, 10**6), st.integers(0, 10**6), OBJECTIVES)
def test_the_objective_is_kept_exactly_while_the_burn_rate_is_at_most_one(
    total: int, bad: int, objective: float
) -> None:
    bad = min(bad, total)
    burn = burn_rate(bad, total, objective)
    assert burn is not None
    assert 0 <= burn <= (1 + 1e-6) / (1 - objective)
    # The rate times what is allowed is the bad part again.
    assert burn * (1 - objective) == pytest.approx(bad / total, rel=1e-6)
    if abs(burn - 1) > 1e-6:
        assert (burn < 1) == (1 - bad / total > objective)


@given(st.integers(1, 10**6), st.integers(1, 1000), OBJECTIVES, st.integers(2, 10))
def test_it_is_proportional_to_the_bad_part_and_not_to_the_load(
    total: int, bad: int, objective: float, times: int
) -> None:
    once, busier, worse = (
        burn_rate(bad, total * 10**4, objective),
        burn_rate(bad * times, total * 10**4 * times, objective),
        burn_rate(bad * times, total * 10**4, objective),
    )
    assert once is not None
    assert busier == pytest.approx(once)
    assert worse == pytest.approx(once * times)


def test_without_requests_nothing_burns() -> None:
    assert burn_rate(0, 0, 0.99) is None


@given(COUNTS)
def test_each_request_is_answered_unanswered_or_not_judged(outcomes: dict[str, int]) -> None:
    bad, total = unanswered(outcomes, 0)
    assert bad <= total
    assert total - bad == outcomes.get("ok", 0)
    assert sum(outcomes.values()) - total == sum(outcomes.get(outcome, 0) for outcome in NOT_JUDGED)


@given(COUNTS, st.integers(0, 10**6))
def test_what_a_clients_quota_refused_counts_neither_way(outcomes: dict[str, int], quota: int) -> None:
    more = outcomes | {"overloaded": outcomes.get("overloaded", 0) + quota}
    assert unanswered(more, quota) == unanswered(outcomes, 0)


def test_the_alerts_count_the_same_requests() -> None:
    groups = yaml.safe_load((ROOT / "grafana/prometheus/slo.rules.yml").read_text())["groups"]
    rules = "".join(rule["expr"] for group in groups for rule in group["rules"] if "expr" in rule)
    matchers = set(re.findall(r'inferd_requests_total\{outcome(=~|!~)"([a-z_|]+)",reason!="quota"\}', rules))
    assert {(kind, frozenset(names.split("|"))) for kind, names in matchers} == {("=~", UNANSWERED), ("!~", NOT_JUDGED)}
