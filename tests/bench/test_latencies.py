"""Histograms of durations, compared with the durations themselves."""

import pickle

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from inferd.bench.latencies import Latencies
from tests.effort import examples

HOUR = 3_600_000_000_000
# Every order of magnitude as likely as the next.
durations = st.builds(lambda bits, part: 1 + int(part * min(HOUR - 1, 1 << bits)), st.integers(0, 42), st.floats(0, 1))
many = st.lists(durations, min_size=1, max_size=300)
# A histogram takes milliseconds to make.
few = settings(max_examples=examples(25))
percentiles = st.sampled_from([0.1, 1, 25, 50, 75, 90, 95, 99, 99.9, 99.99, 100])


def true_quantile(values: list[int], percentile: float) -> float:
    return float(np.quantile(np.array(values), percentile / 100, method="inverted_cdf"))


@few
@given(values=many, percentile=percentiles)
def test_a_quantile_is_the_true_one_within_a_thousandth_and_never_below_it(
    values: list[int], percentile: float
) -> None:
    # In whole numbers: 99.9 % of 1000 is 999, which a binary fraction may miss.
    ordered = sorted(values)
    rank = -(-len(values) * round(percentile * 1000) // 100_000)
    true = ordered[max(1, rank) - 1]
    said = Latencies.of(values).quantile(percentile)
    assert said is not None
    assert true <= round(said * 1e9) <= true * 1.001 + 1


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0, 99.9])
def test_a_quantile_of_very_many_is_numpys(percentile: float) -> None:
    values = np.random.default_rng(3).lognormal(14, 1, 200_011).astype(np.int64)
    said = Latencies.of(values).quantile(percentile)
    assert said == pytest.approx(true_quantile(values.tolist(), percentile) / 1e9, rel=0.001)


@few
@given(parts=st.lists(st.lists(durations, max_size=60), max_size=5))
def test_parts_merged_are_the_whole(parts: list[list[int]]) -> None:
    whole, merged = Latencies.of([v for part in parts for v in part]), Latencies.merged(map(Latencies.of, parts))
    asked = (0.1, 50, 90, 99, 99.9, 100)
    assert merged.quantiles(asked) == whole.quantiles(asked)
    assert (merged.count, merged.total, merged.least, merged.most) == (
        whole.count,
        whole.total,
        whole.least,
        whole.most,
    )


@few
@given(values=many)
def test_mean_least_and_most_are_exact(values: list[int]) -> None:
    latencies = Latencies.of(values)
    assert (latencies.count, latencies.total) == (len(values), sum(values))
    assert (latencies.least, latencies.most) == (min(values), max(values))
    assert latencies.mean == sum(values) / len(values) / 1e9
    assert latencies.worst == max(values) / 1e9 == latencies.quantile(100)


@few
@given(values=many)
def test_the_library_counts_the_same_taking_one_value_at_a_time(values: list[int]) -> None:
    one_by_one = HdrHistogram(1, HOUR, 3)
    for value in values:
        one_by_one.record_value(value)
    ours = HdrHistogram.decode(Latencies.of(values).histogram)
    assert list(ours.counts) == list(one_by_one.counts)[: len(list(ours.counts))]
    assert ours.get_total_count() == one_by_one.get_total_count()


def test_an_empty_histogram_has_no_figures() -> None:
    nothing = Latencies.of(())
    assert nothing.quantiles((50, 99)) == [None, None]
    assert (nothing.mean, nothing.worst, nothing.count) == (None, None, 0)
    assert Latencies.merged([]) == nothing == Latencies.merged([nothing, nothing])


def test_values_out_of_range_count_as_its_end() -> None:
    latencies = Latencies.of([0, -5, 2 * HOUR])
    assert (latencies.least, latencies.most, latencies.count) == (1, HOUR, 3)


def test_they_travel_between_processes() -> None:
    latencies = Latencies.of([1000, 2000])
    assert pickle.loads(pickle.dumps(latencies)) == latencies
