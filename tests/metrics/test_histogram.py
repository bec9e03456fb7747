"""A histogram cell counts each value once, in the right bucket."""

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.metrics.histogram import Histogram
from inferd.metrics.instruments import LATENCY_BUCKETS

NANO = 10**9
NANOSECONDS = st.integers(0, 20 * NANO)
BOUNDS = st.lists(st.floats(1e-6, 20, allow_nan=False), min_size=1, max_size=8, unique=True).map(sorted)


def filled(values: list[int], bounds: list[float] | tuple[float, ...] = LATENCY_BUCKETS) -> Histogram:
    cell = Histogram(bounds, NANO)
    for value in values:
        cell.add(value)
    return cell


@given(st.lists(NANOSECONDS, max_size=50))
def test_a_bucket_counts_what_took_no_longer_than_its_bound(durations: list[int]) -> None:
    buckets, seconds = filled(durations).cumulative()
    expected = [sum(d <= round(bound * NANO) for d in durations) for bound in LATENCY_BUCKETS]
    assert [n for _, n in buckets] == [*expected, len(durations)]
    assert seconds == pytest.approx(sum(durations) / NANO)


@pytest.mark.parametrize("bound", LATENCY_BUCKETS)
def test_a_duration_right_at_a_bound_belongs_to_it(bound: float) -> None:
    cell = filled([round(bound * NANO)])
    assert cell.counts.index(1) == LATENCY_BUCKETS.index(bound) == bisect_left(LATENCY_BUCKETS, bound)


def test_bounds_are_written_as_alerting_rules_match_them() -> None:
    bounds = [bound for bound, _ in Histogram(LATENCY_BUCKETS).cumulative()[0]]
    assert bounds[0] == "0.0001"
    assert "1.0" in bounds
    assert bounds[-2:] == ["10.0", "+Inf"]
    assert sorted(LATENCY_BUCKETS) == list(LATENCY_BUCKETS)


@given(st.lists(NANOSECONDS, max_size=50), BOUNDS, BOUNDS)
def test_new_bounds_lose_nothing_and_keep_what_both_know(values: list[int], old: list[float], new: list[float]) -> None:
    before = filled(values, old)
    after = before.rebound(new)
    assert after.bounds == tuple(new)
    assert sum(after.counts) == len(values)
    assert after.total == before.total
    exact, kept = dict(before.cumulative()[0]), dict(after.cumulative()[0])
    assert all(kept[bound] == exact[bound] for bound in exact.keys() & kept.keys())


@given(st.lists(NANOSECONDS, max_size=50), BOUNDS, BOUNDS, st.lists(NANOSECONDS, max_size=50))
def test_after_new_bounds_counting_goes_on_exactly(
    values: list[int], old: list[float], new: list[float], more: list[int]
) -> None:
    cell = filled(values, old).rebound(new)
    before = dict(cell.cumulative()[0])
    for value in more:
        cell.add(value)
    grown = {bound: count - before[bound] for bound, count in cell.cumulative()[0]}
    assert grown == dict(filled(more, new).cumulative()[0])


def test_the_last_traced_value_of_a_bucket_is_its_exemplar() -> None:
    cell = Histogram((0.001, 0.01), NANO)
    for milliseconds, trace in ((2, "a"), (3, "b"), (4, ""), (50, "c")):
        cell.add(milliseconds * 1_000_000, trace)
    assert [e and e[:2] for e in cell.exemplars] == [None, ("b", 0.003), ("c", 0.05)]
    # New bounds keep them where their bucket goes.
    assert [e and e[0] for e in cell.rebound((0.01, 0.1)).exemplars] == ["b", None, "c"]
