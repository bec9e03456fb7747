"""Rates, percentiles and histories of the last seconds, from synthetic figures."""

import json
import math
from bisect import bisect_left
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.metrics import record_json
from inferd.metrics.instruments import LATENCY_BUCKETS
from inferd.metrics.rolling import History, ServerView, part_within, quantile
from inferd.metrics.snapshot import ServerSnapshot
from tests.metrics.made_up import BOUNDS, device, model, server

SECONDS = st.floats(0, 20, allow_nan=False)


def bucketed(latencies: list[float], bounds: tuple[float, ...] = LATENCY_BUCKETS) -> tuple[int, ...]:
    counted = Counter(bisect_left(bounds, latency) for latency in latencies)
    return tuple(counted[bucket] for bucket in range(len(bounds) + 1))


def shown(history: History, since: int = 0) -> dict[str, Any]:
    """What ``history`` says, as a client reads it."""
    view = history.view(since)
    assert view is not None
    seen = json.loads(json.dumps(record_json.plain(view), allow_nan=False))
    assert record_json.decode(ServerView, seen) == view
    return seen


def after(*readings: ServerSnapshot, window: float = 10.0, kept: int = 300, since: int = 0) -> dict[str, Any]:
    history = History(window, kept)
    for reading in readings:
        history.add(reading)
    return shown(history, since)


def of(view: dict[str, Any], name: str = "m") -> dict[str, Any]:
    (found,) = [m for m in view["models"] if m["model"] == name]
    return found


# -- quantiles --------------------------------------------------------------------


@given(st.lists(SECONDS, min_size=1, max_size=200), st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999, 1.0]))
def test_a_quantile_lies_in_the_bucket_that_holds_the_exact_one(latencies: list[float], q: float) -> None:
    exact = sorted(latencies)[math.ceil(q * len(latencies)) - 1]
    bucket = bisect_left(LATENCY_BUCKETS, exact)
    seen = quantile(q, LATENCY_BUCKETS, bucketed(latencies))
    assert seen is not None
    if bucket == len(LATENCY_BUCKETS):
        assert seen == LATENCY_BUCKETS[-1]
    else:
        lower = LATENCY_BUCKETS[bucket - 1] if bucket else 0.0
        assert lower <= seen <= LATENCY_BUCKETS[bucket] * (1 + 1e-12)


@given(st.lists(SECONDS, max_size=100), st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_a_higher_quantile_is_never_lower(latencies: list[float], qs: list[float]) -> None:
    seen = [quantile(q, LATENCY_BUCKETS, bucketed(latencies)) for q in sorted(qs)]
    if not latencies:
        assert set(seen) == {None}
    else:
        assert all(a is not None and b is not None and a <= b for a, b in pairwise(seen))


# What `histogram_quantile(q, ...)` of Prometheus 2.42 gives for le=0.001: 2, 0.01: 8, 0.1: 10, +Inf: 10 or 12.
@pytest.mark.parametrize(
    ("q", "counts", "expected"),
    [
        (0.1, (2, 6, 2, 0), 0.0005),
        (0.2, (2, 6, 2, 0), 0.001),
        (0.5, (2, 6, 2, 0), 0.0055),
        (0.9, (2, 6, 2, 0), 0.055),
        (1.0, (2, 6, 2, 0), 0.1),
        (0.99, (2, 6, 2, 2), 0.1),
        (0.5, (0, 0, 4, 0), 0.055),
    ],
)
def test_a_quantile_is_interpolated_as_prometheus_does(q: float, counts: tuple[int, ...], expected: float) -> None:
    assert quantile(q, BOUNDS, counts) == pytest.approx(expected)


def test_there_is_no_quantile_of_nothing() -> None:
    assert quantile(0.5, BOUNDS, (0, 0, 0, 0)) is None
    assert quantile(0.5, (), (3,)) is None
    assert part_within(0.01, BOUNDS, (0, 0, 0, 0)) is None


@given(st.lists(SECONDS, min_size=1, max_size=100), st.sampled_from(LATENCY_BUCKETS))
def test_the_part_within_an_objective_that_is_a_bound_is_exact(latencies: list[float], objective: float) -> None:
    seen = part_within(objective, LATENCY_BUCKETS, bucketed(latencies))
    assert seen == pytest.approx(sum(latency <= objective for latency in latencies) / len(latencies))


@given(st.lists(SECONDS, min_size=1, max_size=100), SECONDS)
def test_the_part_within_any_other_lies_between_its_neighbours(latencies: list[float], objective: float) -> None:
    counts = bucketed(latencies)
    seen = part_within(objective, LATENCY_BUCKETS, counts)
    place = bisect_left(LATENCY_BUCKETS, objective)
    below, above = sum(counts[:place]) / len(latencies), sum(counts[: place + 1]) / len(latencies)
    assert seen is not None
    assert below - 1e-9 <= seen <= above + 1e-9


# -- rates ------------------------------------------------------------------------


def test_before_the_first_reading_there_is_nothing() -> None:
    assert History().view() is None


def test_the_first_reading_says_what_is_and_not_how_fast() -> None:
    view = after(server(100, [model(outcomes={"ok": 50}, counts=(50, 0, 0, 0), rows=50, waiting=3, in_flight=5)]))
    assert (view["window"], view["uptime"], view["phase"]) == (0.0, 60.0, "ready")
    seen = of(view)
    assert (seen["answered"], seen["inferences"], seen["p99"], seen["outcomes"]) == (0.0, 0.0, None, {})
    assert (seen["waiting"], seen["in_flight"], seen["limit"], seen["infer_requests"]) == (3, 5, 40, 8)
    assert seen["history"] == {"answered": [], "p99": []}


def test_rates_are_of_what_ended_between_two_readings() -> None:
    before = model(outcomes={"ok": 100, "deadline": 1}, counts=(100, 0, 0, 0), seconds=1.0, rows=100)
    outcomes = {"ok": 140, "deadline": 3, "overloaded": 6, "cancelled": 2, "unavailable": 2, "invalid": 8}
    now = model(outcomes=outcomes, counts=(100, 40, 0, 0), seconds=1.5, rows=180)
    view = after(server(100, [before], cpu_seconds=7.0), server(102, [now], cpu_seconds=10.0, other={"not_found": 4}))
    seen = of(view)
    assert (seen["answered"], seen["inferences"], seen["load"]) == (20.0, 40.0, 0.25)
    assert (seen["shed"], seen["errors"], seen["refused"]) == (3.0, 2.0, 5.0)
    assert seen["outcomes"] == {
        "ok": 20.0,
        "deadline": 1.0,
        "overloaded": 3.0,
        "cancelled": 1.0,
        "unavailable": 1.0,
        "invalid": 4.0,
    }
    # All forty took 1 ms to 10 ms.
    assert seen["p50"] == pytest.approx(0.0055)
    assert (view["cpu"], view["window"], view["other"]) == (1.5, 2.0, {"not_found": 2.0})
    assert (view["answered"], view["shed"], view["errors"], view["refused"]) == (20.0, 3.0, 2.0, 7.0)


def test_an_unknown_outcome_is_an_error() -> None:
    view = after(server(1, [model()]), server(2, [model(outcomes={"odd": 2})], other={"odder": 3}))
    assert (of(view)["errors"], view["errors"]) == (2.0, 5.0)


@given(st.lists(st.tuples(st.floats(0.1, 3), st.integers(0, 1000)), min_size=1, max_size=40))
def test_the_window_covers_what_it_says_and_no_reading_more(steps: list[tuple[float, int]]) -> None:
    history, at, total = History(window=5.0), 100.0, 0
    history.add(server(at, [model()]))
    times, totals = [at], [0]
    for seconds, more in steps:
        at, total = at + seconds, total + more
        history.add(server(at, [model(outcomes={"ok": total}, counts=(total, 0, 0, 0), rows=total)]))
        times.append(at)
        totals.append(total)
    view = shown(history)
    # The newest reading that is a whole window ago, else the first.
    first = max((place for place, time in enumerate(times) if at - time >= 5.0 - 1e-9), default=0)
    near = {first, first + 1} if abs(at - times[first] - 5.0) < 1e-6 else {first}
    assert any(view["window"] == pytest.approx(at - times[place], rel=1e-4) for place in near)
    rates = [(total - totals[place]) / (at - times[place]) for place in near if times[place] < at]
    assert any(of(view)["answered"] == pytest.approx(rate, rel=1e-4, abs=1e-9) for rate in rates)


def test_an_objective_is_judged_by_its_own_percentile() -> None:
    bounds = (0.01, 0.02, 0.1)
    known = {"bounds": bounds, "objective": 0.02, "percentile": 90.0}
    view = after(server(1, [model(**known)]), server(2, [model(counts=(80, 15, 5, 0), outcomes={"ok": 100}, **known)]))
    seen = of(view)
    assert seen["within"] == 0.95
    assert seen["tail"] == pytest.approx(0.01 + 0.01 * 10 / 15, rel=1e-4)
    assert seen["p99"] == pytest.approx(0.02 + 0.08 * 4 / 5, rel=1e-4)
    assert seen["ceiling"] == 0.1


def test_without_an_objective_or_answers_there_is_no_part_in_time() -> None:
    view = after(server(1, [model()]), server(2, [model(counts=(9, 0, 0, 0), outcomes={"ok": 9})]))
    assert of(view)["within"] is None
    view = after(server(1, [model(objective=0.01)]), server(2, [model(objective=0.01)]))
    assert (of(view)["within"], of(view)["tail"]) == (None, None)


def test_the_error_budgets_are_those_of_the_window() -> None:
    known = {"objective": 0.01, "percentile": 99.0}
    outcomes = {"ok": 1990, "overloaded": 8, "deadline": 1, "internal": 1, "cancelled": 40, "invalid": 7}
    # 0.5 % of the answers are late.
    now = model(counts=(1000, 980, 10, 0), outcomes=outcomes, **known)
    seen = of(after(server(1, [model(**known)]), server(2, [now])))
    assert seen["latency_burn"] == pytest.approx(10 / 1990 / 0.01, rel=1e-4)
    assert seen["availability"] == 0.999
    assert seen["availability_burn"] == pytest.approx(10 / 2000 / 0.001, rel=1e-4)


def test_what_a_quota_refused_spends_no_budget() -> None:
    before = model(outcomes={"ok": 5, "overloaded": 3}, over_quota=3)
    now = model(outcomes={"ok": 104, "overloaded": 54}, over_quota=53)
    assert of(after(server(1, [before]), server(2, [now])))["availability_burn"] == pytest.approx(1 / 100 / 0.001)


def test_a_budget_that_nothing_is_judged_by_has_no_burn_rate() -> None:
    quiet = of(after(server(1, [model(objective=0.01)]), server(2, [model(objective=0.01)])))
    assert (quiet["latency_burn"], quiet["availability_burn"]) == (None, None)
    answered = model(counts=(9, 0, 0, 0), outcomes={"ok": 9})
    without = of(after(server(1, [model()]), server(2, [answered])))
    assert (without["latency_burn"], without["availability"], without["availability_burn"]) == (None, 0.999, 0.0)


def test_the_tuners_phase_is_told() -> None:
    seen = of(after(server(1, [model(tuning="searching: 3 of 40 measured", tuner="searching")])))
    assert (seen["tuner"], seen["tuning"]) == ("searching", "searching: 3 of 40 measured")


# -- what comes, goes and begins again --------------------------------------------


def test_counters_that_begin_again_count_from_zero() -> None:
    before = model(outcomes={"ok": 1000, "overloaded": 10}, counts=(0, 1000, 0, 0), seconds=5.0, rows=1000)
    now = model(outcomes={"ok": 30}, counts=(30, 0, 0, 0), seconds=0.5, rows=30)
    seen = of(after(server(1, [before]), server(2, [now])))
    assert (seen["answered"], seen["inferences"], seen["shed"], seen["load"]) == (30.0, 30.0, 0.0, 0.5)
    assert seen["p99"] is not None
    assert seen["p99"] <= 0.001


def test_a_model_that_came_has_rates_from_its_second_reading_on() -> None:
    old = [model("old", outcomes={"ok": n}) for n in (0, 5, 10)]
    new = [model("new", outcomes={"ok": 700}), model("new", outcomes={"ok": 707})]
    first = after(server(1, old[:1]), server(2, [old[1], new[0]]))
    assert (of(first, "old")["answered"], of(first, "new")["answered"]) == (5.0, 0.0)
    second = after(server(1, old[:1]), server(2, [old[1], new[0]]), server(3, [old[2], new[1]]))
    assert (of(second, "old")["answered"], of(second, "new")["answered"]) == (5.0, 7.0)
    assert of(second, "new")["history"]["answered"] == [7.0]


def test_a_model_that_went_is_forgotten_with_its_history() -> None:
    history = History()
    for at in range(5):
        history.add(server(at, [model(outcomes={"ok": at})]))
    history.add(server(5))
    view = shown(history)
    assert view["models"] == []
    history.add(server(6, [model(outcomes={"ok": 9})]))
    history.add(server(7, [model(outcomes={"ok": 10})]))
    view = shown(history)
    assert of(view)["history"]["answered"] == [1.0]


def test_an_objective_that_changed_begins_a_new_histogram() -> None:
    other = (0.001, 0.005, 0.01, 0.1)
    readings = [
        server(1, [model()]),
        server(2, [model(counts=(0, 0, 50, 0), outcomes={"ok": 50})]),
        server(3, [model(bounds=other, counts=(10, 0, 0, 0, 0), outcomes={"ok": 60})]),
        server(4, [model(bounds=other, counts=(20, 0, 0, 0, 0), outcomes={"ok": 70})]),
    ]
    seen = of(after(*readings))
    assert seen["answered"] == pytest.approx(70 / 3, rel=1e-4)
    assert seen["p99"] is not None
    assert seen["p99"] <= 0.001


def test_a_reading_that_is_not_later_is_passed_over() -> None:
    view = after(server(5, [model()]), server(5, [model("other")]), server(4))
    assert (view["sequence"], [m["model"] for m in view["models"]]) == (1, ["m"])


# Ten names at most come and go, with counters that rise or fall as they like.
FIGURES = st.builds(
    lambda name, ok, counts: model(name, outcomes={"ok": ok} if ok else {}, counts=tuple(counts), rows=ok, seconds=ok),
    st.sampled_from("abc"),
    st.integers(0, 100),
    st.lists(st.integers(0, 100), min_size=len(BOUNDS) + 1, max_size=len(BOUNDS) + 1),
)
READINGS = st.lists(
    st.tuples(st.floats(0.01, 30), st.lists(FIGURES, max_size=3, unique_by=lambda m: m.model)), max_size=30
)


@given(READINGS, st.integers(-1, 40))
def test_whatever_comes_the_answer_is_finite_json_with_nothing_negative(
    readings: list[tuple[float, list]], since: int
) -> None:
    history, at = History(readings=8), 0.0
    for seconds, models in readings:
        at += seconds
        history.add(server(at, models, cpu_seconds=50 - at))
        view = shown(history, since)
        assert [m["model"] for m in view["models"]] == [m.model for m in models]
        for seen in view["models"]:
            numbers = [seen[rate] for rate in ("answered", "inferences", "shed", "errors", "load")]
            assert all(number >= 0 for number in numbers)
            assert len(seen["history"]["answered"]) == len(seen["history"]["p99"]) <= 8


# -- history ----------------------------------------------------------------------


def history_of(readings: int, kept: int = 300) -> History:
    history = History(readings=kept)
    for n in range(readings):
        # In second n, n requests of 0.5 ms, and in each third none at all.
        total = sum(k for k in range(n + 1) if k % 3)
        history.add(server(n, [model(outcomes={"ok": total}, counts=(total, 0, 0, 0))]))
    return history


def points(history: History, since: int = 0) -> tuple[list[float], list[float | None]]:
    view = shown(history, since)
    seen = of(view)["history"]
    return seen["answered"], seen["p99"]


def test_a_history_has_a_point_a_reading_after_the_first() -> None:
    answered, p99 = points(history_of(6))
    assert answered == [1.0, 2.0, 0.0, 4.0, 5.0]
    assert [value is None for value in p99] == [False, False, True, False, False]


def test_a_history_is_no_longer_than_it_may_be() -> None:
    assert points(history_of(100, kept=5))[0] == [95.0, 0.0, 97.0, 98.0, 0.0]


@pytest.mark.parametrize(
    ("since", "expected"),
    [(6, []), (5, [5.0]), (4, [4.0, 5.0]), (0, [1.0, 2.0, 0.0, 4.0, 5.0])],
)
def test_a_caller_gets_what_came_after_the_reading_it_has(since: int, expected: list[float]) -> None:
    assert points(history_of(6), since)[0] == expected


@pytest.mark.parametrize("since", [7, 10**9, -1])
def test_a_caller_that_names_a_reading_of_another_process_gets_all(since: int) -> None:
    assert points(history_of(6), since)[0] == [1.0, 2.0, 0.0, 4.0, 5.0]


def test_a_device_is_told_as_it_was_read() -> None:
    view = after(server(1, [model(devices=(device("GPU.0", 2, 0, 4, "f16"),))]))
    assert of(view)["devices"] == [
        {"device": "GPU.0", "streams": 2, "threads": 0, "infer_requests": 4, "precision": "f16"}
    ]
