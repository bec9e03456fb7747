"""The text equals the client library's, byte for byte, and comes in chunks."""

import math

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

from inferd.errors import Cancelled
from inferd.exposition import exposition
from inferd.metrics import instruments
from inferd.metrics.families import histogram
from inferd.metrics.histogram import Histogram
from inferd.metrics.recorder import Recorder
from inferd.requests import Observation, Stages
from inferd.trace_context import TraceContext

TEXT = st.text(max_size=12)
NUMBERS = st.one_of(
    st.integers(-(10**12), 10**12),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1e6, 999_999.9, 1e-7, 1e21, math.inf, -math.inf, math.nan]),
)
LABELS = st.tuples(TEXT, TEXT)


class Fixed(Collector):
    def __init__(self, *families: Metric) -> None:
        self.families = families

    def collect(self) -> tuple[Metric, ...]:
        return self.families


def both(*families: Metric) -> tuple[bytes, bytes]:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Fixed(*families))
    return b"".join(exposition.pieces(registry.collect())), generate_latest(registry)


@given(TEXT, st.lists(st.tuples(LABELS, NUMBERS), max_size=5))
def test_gauges_and_counters(documentation: str, samples: list[tuple[tuple[str, str], float]]) -> None:
    gauge = GaugeMetricFamily("g", documentation, labels=("b", "a"))
    counter = CounterMetricFamily("c", documentation, labels=("b", "a"))
    for labels, value in samples:
        gauge.add_metric(labels, value)
        counter.add_metric(labels, value)
    ours, theirs = both(gauge, counter)
    assert ours == theirs


@given(
    st.lists(st.tuples(TEXT, NUMBERS, st.none() | st.tuples(TEXT, NUMBERS, st.none() | st.floats(0, 2e9))), max_size=5)
)
def test_histograms_with_exemplars(buckets: list[tuple[str, float, tuple[str, float, float | None] | None]]) -> None:
    histogram = HistogramMetricFamily("h", "Text.", labels=("a",))
    histogram.samples = [
        Sample(
            "h_bucket",
            {"a": "x", "le": le},
            value,
            None,
            exemplar and Exemplar({"trace_id": exemplar[0]}, *exemplar[1:]),
        )
        for le, value, exemplar in buckets
    ]
    ours, theirs = both(histogram)
    assert ours == theirs


@given(LABELS, st.none() | st.floats(0, 2e9))
def test_facts_units_and_timestamps(labels: tuple[str, str], timestamp: float | None) -> None:
    info = InfoMetricFamily("i", "Text.", value=dict(zip("ab", labels, strict=True)))
    sized = Metric("size_bytes", "Text.", "gauge", "bytes")
    sized.samples = [Sample("size_bytes", {}, 1.0, timestamp)]
    ours, theirs = both(info, sized)
    assert ours == theirs


@given(
    TEXT,
    st.lists(st.tuples(st.integers(0, 4 * 10**9), st.sampled_from(["", "a" * 32, 'b"\\']), st.integers(1, 10**6))),
)
def test_our_own_histograms_at_every_scrape(model: str, values: list[tuple[int, str, int]]) -> None:
    cell = Histogram((0.001, 0.5, 1.0, 3.0), 10**9)
    other = Histogram((0.25,), 10**9)
    stages = [((model, "1", "decode"), cell), ((model, "1", "encode"), other)]
    for value, trace, times in values:
        cell.add(value, trace)
        cell.counts[1] += times
        other.add(value)
        ours, theirs = both(histogram(instruments.STAGE_SECONDS, stages))
        assert ours == theirs
    ours, theirs = both(histogram(instruments.STAGE_SECONDS, stages))
    assert ours == theirs


def test_what_the_library_collects_itself() -> None:
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    families = list(registry.collect())
    assert families
    ours, theirs = both(*families)
    assert ours == theirs


def test_many_samples_come_in_pieces_of_which_none_is_large() -> None:
    gauge = GaugeMetricFamily("g", "Text.", labels=("n",))
    for n in range(10_000):
        gauge.add_metric((str(n),), n)
    pieces = list(exposition.pieces([gauge]))
    assert b"".join(pieces).count(b"\n") == 10_003
    assert max(piece.count(b"\n") for piece in pieces) <= 520


def test_what_is_kept_of_one_scrape_changes_nothing_of_the_next() -> None:
    recorder, heads = Recorder(grace=0), exposition.Heads()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(recorder)
    odd, late = ('a "model"\\\n', "1"), ("late", "2")
    stages = Stages(*range(10**9, 10**9 + 9 * 10**6, 10**6))
    trace = TraceContext("1" * 32, "2" * 16, "", sampled=True)
    for objectives in ({odd: None}, {odd: 0.03}, {odd: 0.03, late: None}, {late: 0.001}, {}):
        recorder.follow(objectives)
        for _ in range(2):
            for key in objectives:
                recorder.observe(Observation(*key, "ok", stages, "CPU", trace=trace))
                recorder.observe(Observation(*key, "cancelled", stages, error=Cancelled("m")))
            for _ in range(2):
                assert b"".join(exposition.pieces(registry.collect(), heads)) == generate_latest(registry)
    assert not any(heads.values())
