"""Series of several workers are added as a reader of each text would add them, and the sum is valid text."""

import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Exemplar

from inferd.exposition import exposition
from inferd.metrics import merge_text
from inferd.metrics.families import HeadSamples, counter, gauge, histogram, info
from inferd.metrics.histogram import Histogram
from inferd.metrics.instruments import Instrument
from inferd.metrics.merge_text import Families, Rule

# No surrogates: labels are UTF-8.
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
COUNTER = Instrument("c", "counter", 'Counted: \\ and "\n".', ("a", "model"))
GAUGE = Instrument("g", "gauge", "", ("a",))
HISTOGRAM = Instrument("h_seconds", "histogram", "Took.", ("a",))
FACTS = Instrument("f", "info", "Facts.", ("a", "b"))
PRESENT = Instrument("inferd_model_ready", "gauge", "Models.", ("model",))
BOUNDS = (0.1, 1.0, 10.0)

Read = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def text(*families: Metric) -> str:
    return b"".join(exposition.pieces(families)).decode()


def parsed(*families: Metric) -> Families:
    return merge_text.parse(text(*families))


def written(families: Sequence[merge_text.Family]) -> str:
    metrics = []
    for family in families:
        metric = Metric(family.name, family.help, family.kind, family.unit)
        metric.samples = HeadSamples(family.values)
        metrics.append(metric)
    return text(*metrics)


def merged(parts: Sequence[Families], retired: Families | None = None, rule: Rule = "sum") -> str:
    return written(list(merge_text.merge({str(i): part for i, part in enumerate(parts)}, retired, lambda _: rule)))


def read(exposed: str) -> Read:
    """Every sample, as Prometheus' own client library reads it."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposed)
        for sample in family.samples
    }


def exemplars(exposed: str) -> dict[str, Exemplar]:
    return {
        sample.labels["le"]: sample.exemplar
        for family in text_string_to_metric_families(exposed)
        for sample in family.samples
        if sample.exemplar is not None
    }


def cell(values: Sequence[float], bounds: Sequence[float] = BOUNDS) -> Histogram:
    made = Histogram(bounds)
    for value in values:
        made.add(value)
    return made


class Worker:
    """What one has counted: counters, gauges and the values of a histogram, by their labels."""

    def __init__(
        self,
        counters: Mapping[tuple[str, str], int],
        gauges: Mapping[str, float],
        histograms: Mapping[str, Sequence[float]],
    ) -> None:
        self.counters, self.gauges, self.histograms = counters, gauges, histograms

    def text(self) -> str:
        return text(
            gauge(PRESENT, [((model,), 1) for model in sorted({model for _, model in self.counters})]),
            counter(COUNTER, self.counters.items()),
            gauge(GAUGE, (((label,), value) for label, value in self.gauges.items())),
            histogram(HISTOGRAM, (((label,), cell(values)) for label, values in self.histograms.items())),
        )


WORKERS = st.lists(
    st.builds(
        Worker,
        st.dictionaries(st.tuples(TEXT, TEXT), st.integers(0, 2**40), max_size=4),
        st.dictionaries(TEXT, st.integers(-100, 100), max_size=4),
        st.dictionaries(TEXT, st.lists(st.sampled_from([0.05, 0.1, 0.5, 5.0, 50.0]), max_size=5), max_size=3),
    ),
    min_size=1,
    max_size=4,
)


@given(WORKERS)
def test_every_series_is_the_sum_of_what_a_reader_sees(workers: list[Worker]) -> None:
    expected: Read = {}
    for worker in workers:
        for key, value in read(worker.text()).items():
            expected[key] = expected.get(key, 0) + value
    assert read(merged([merge_text.parse(worker.text()) for worker in workers])) == pytest.approx(expected)


@given(WORKERS)
def test_one_alone_is_written_as_it_was_read(workers: list[Worker]) -> None:
    assert merged([merge_text.parse(workers[0].text())]) == workers[0].text()


@given(WORKERS, WORKERS)
def test_what_departed_have_counted_stays_and_their_gauges_go(here: list[Worker], gone: list[Worker]) -> None:
    retired: Families | None = None
    for worker in gone:
        retired = merge_text.add_retired(retired, merge_text.parse(worker.text()), lambda _: "sum")
    parts = [merge_text.parse(worker.text()) for worker in here]
    models = {model for worker in here for _, model in worker.counters}
    assert retired is not None
    whole = read(merged(parts, merge_text.keep_named(retired, parts)))
    for (label, model), value in {k: v for w in gone for k, v in w.counters.items()}.items():
        key = ("c_total", (("a", label), ("model", model)))
        total = sum(w.counters.get((label, model), 0) for w in (*here, *gone))
        # What a model that is not there any more has counted is not shown, as by one process.
        assert whole.get(key) == (total if model in models or model == "" or model.startswith("_") else None), value
    gauges = {label for worker in here for label in worker.gauges}
    assert {dict(labels)["a"] for name, labels in whole if name == "g"} == gauges


RECEIVED = Instrument("inferd_received_bytes", "counter", "", ("model", "version"))
READY = Instrument("inferd_ready", "gauge", "")


@pytest.mark.parametrize(("ready", "kept"), [([1, 1], {"1"}), ([1, 0], {"1", "2"}), ([], {"1", "2"})])
def test_a_version_that_no_worker_names_is_forgotten_while_all_can_name_theirs(
    ready: list[int], kept: set[str]
) -> None:
    retired = parsed(counter(RECEIVED, [(("m", version), 5) for version in ("1", "2")]))
    parts = [
        parsed(gauge(READY, [((), value)]), counter(RECEIVED, [(("m", "1"), 1)] if at == 0 else []))
        for at, value in enumerate(ready)
    ]
    named = merge_text.keep_named(retired, parts)["inferd_received_bytes"].values
    assert {merge_text.labels_of(head)["version"] for head in named} == kept


@given(WORKERS, WORKERS)
def test_what_one_worker_drops_is_what_its_text_lacks(first: list[Worker], second: list[Worker]) -> None:
    before, now = (merge_text.parse(workers[0].text()) for workers in (first, second))
    gone = merge_text.vanished_series(before, now, lambda _: "sum")
    lacking = read(first[0].text()).keys() - read(second[0].text()).keys()
    assert read(merged([gone])).keys() == {key for key in lacking if key[0] not in ("g", "inferd_model_ready")}


def test_a_bound_that_went_with_its_objective_is_not_dropped() -> None:
    before, now = (
        parsed(histogram(HISTOGRAM, [(("x",), cell([0.05, 0.5], bounds))])) for bounds in ((0.3, 1.0), (0.4, 1.0))
    )
    assert merge_text.vanished_series(before, now, lambda _: "sum") == {}
    assert merge_text.vanished_series(before, {}, lambda _: "sum") == before


@pytest.mark.parametrize(("rule", "value"), [("sum", 12.0), ("max", 7.0), ("min", 5.0)])
def test_a_gauge_follows_its_rule(rule: Rule, value: float) -> None:
    parts = [parsed(gauge(GAUGE, [(("x",), number)])) for number in (5, 7)]
    assert read(merged(parts, rule=rule)) == {("g", (("a", "x"),)): value}


def test_a_gauge_of_each_worker_says_whose_it_is() -> None:
    parts = [parsed(gauge(GAUGE, [(("x",), number)])) for number in (5, 7)]
    assert read(merged(parts, rule="worker")) == {
        ("g", (("a", "x"), ("worker", "0"))): 5.0,
        ("g", (("a", "x"), ("worker", "1"))): 7.0,
    }
    bare = Instrument("n", "gauge", "No labels.")
    assert read(merged([parsed(gauge(bare, [((), 3)]))], rule="worker")) == {("n", (("worker", "0"),)): 3.0}


def test_what_the_supervisor_says_itself_is_dropped() -> None:
    assert merged([parsed(gauge(GAUGE, [(("x",), 5)]))], rule="own") == "# EOF\n"


def test_facts_are_told_once_whatever_the_rule() -> None:
    parts = [parsed(info(FACTS, [("x", "1")])), parsed(info(FACTS, [("x", "1"), ("x", "2")]))]
    facts = {("f_info", (("a", "x"), ("b", "1"))): 1.0, ("f_info", (("a", "x"), ("b", "2"))): 1.0}
    assert read(merged(parts)) == facts
    assert read(merged(parts, rule="min")) == facts


def test_a_counter_of_what_all_share_is_not_added() -> None:
    parts = [parsed(counter(COUNTER, [(("x", "_"), number)])) for number in (40, 41)]
    retired = merge_text.add_retired(merge_text.add_retired(None, parts[0], lambda _: "max"), parts[0], lambda _: "max")
    assert read(merged(parts, retired, rule="max")) == {("c_total", (("a", "x"), ("model", "_"))): 41.0}


@given(
    st.lists(st.tuples(st.sets(st.sampled_from([0.1, 0.3, 0.5, 1.0, 10.0])), st.lists(st.floats(0.01, 20), max_size=6)))
)
def test_buckets_of_different_bounds_still_rise_and_end_at_the_count(
    said: list[tuple[set[float], list[float]]],
) -> None:
    parts = [parsed(histogram(HISTOGRAM, [(("x",), cell(values, sorted(bounds)))])) for bounds, values in said]
    whole = read(merged(parts))
    buckets = sorted(
        (float(dict(labels)["le"]), value) for (name, labels), value in whole.items() if name == "h_seconds_bucket"
    )
    total = sum(len(values) for _, values in said)
    assert [count for _, count in buckets] == sorted(count for _, count in buckets)
    assert [bound for bound, _ in buckets] == sorted({bound for bounds, _ in said for bound in (*bounds, math.inf)})
    for bound, count in buckets:
        sure = (v for bounds, values in said for v in values if v <= max((b for b in bounds if b <= bound), default=0))
        assert count == (total if math.isinf(bound) else sum(1 for _ in sure))
    if said:
        assert whole["h_seconds_count", (("a", "x"),)] == total


def test_a_bound_that_only_those_have_who_are_gone_is_not_shown() -> None:
    retired = parsed(histogram(HISTOGRAM, [(("x",), cell([0.2, 0.4], [0.3, 1.0]))]))
    whole = read(merged([parsed(histogram(HISTOGRAM, [(("x",), cell([0.2], [1.0]))]))], retired))
    assert {(dict(labels)["le"], value) for (name, labels), value in whole.items() if name.endswith("_bucket")} == {
        ("1.0", 3.0),
        ("+Inf", 3.0),
    }


def test_of_two_exemplars_the_later_one_is_kept() -> None:
    early, late, other = cell([]), cell([]), cell([])
    for made, at, trace, moment in ((early, 0, "a" * 32, 10.0), (late, 0, "b" * 32, 20.0), (other, 1, "c" * 32, 5.0)):
        made.counts[at] = 1
        made.exemplars[at] = (trace, 0.05, moment)
    parts = [parsed(histogram(HISTOGRAM, [(("x",), one)])) for one in (early, late, other)]
    found = exemplars(merged(parts))
    assert {bound: one.labels["trace_id"][0] for bound, one in found.items()} == {"0.1": "b", "1.0": "c"}


def test_what_is_no_line_is_refused() -> None:
    with pytest.raises(ValueError, match="no line of an exposition"):
        merge_text.parse('a{b="c} 1\n')
