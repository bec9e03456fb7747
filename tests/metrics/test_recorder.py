"""Every observation is counted once, in the right series and the right bucket."""

import time
from bisect import bisect_left
from collections import Counter
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from inferd.metrics.instruments import LATENCY_BUCKETS, OTHER
from inferd.metrics.recorder import LatencyCell, Recorder, Statistics
from inferd.requests import Observation, Stages

MS = 1_000_000
# Decoding 1 ms, in line 2, copying 3, computing 4, encoding 5.
STAGES = Stages(*(ms * MS for ms in (100, 101, 103, 106, 110, 115)))


def seen(model: str = "m", outcome: str = "ok", stages: Stages = STAGES, batch: int = 1) -> Observation:
    return Observation(model, "" if model == OTHER else "1", outcome, stages, batch=batch, run_rows=batch)


def lasting(nanoseconds: int) -> Stages:
    return Stages(received=1, answered=1 + nanoseconds)


def exposed(recorder: Recorder) -> dict[tuple[str, ...], float]:
    """Every sample as Prometheus reads it: name, then label values in order of their names."""
    registry = CollectorRegistry()
    registry.register(recorder)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_request_counts_once_under_its_model_version_and_outcome() -> None:
    recorder = Recorder()
    for observation in (seen(), seen(), seen(outcome="deadline"), seen("n"), seen(OTHER, "not_found")):
        recorder.observe(observation)

    counts = {key[1:]: value for key, value in exposed(recorder).items() if key[0] == "inferd_requests_total"}
    assert counts == {
        ("m", "ok", "1"): 2,
        ("m", "deadline", "1"): 1,
        ("n", "ok", "1"): 1,
        (OTHER, "not_found", ""): 1,
    }


def test_the_histogram_holds_as_many_as_the_counter_and_their_seconds() -> None:
    recorder = Recorder()
    for milliseconds in (1, 20, 300):
        recorder.observe(seen(stages=lasting(milliseconds * MS)))
    samples = exposed(recorder)
    assert samples["inferd_request_duration_seconds_count", "m", "ok", "1"] == 3
    assert samples["inferd_request_duration_seconds_sum", "m", "ok", "1"] == pytest.approx(0.321)
    assert samples["inferd_requests_total", "m", "ok", "1"] == 3


@given(st.lists(st.integers(0, 20 * 10**9), max_size=50))
def test_a_bucket_counts_what_took_no_longer_than_its_bound(durations: list[int]) -> None:
    cell = LatencyCell()
    for duration in durations:
        cell.add(duration / 1e9)
    rising, count = cell.cumulative()
    expected = [sum(d / 1e9 <= bound for d in durations) for bound in (*LATENCY_BUCKETS, float("inf"))]
    assert [n for _, n in rising] == expected
    assert count == len(durations)


@pytest.mark.parametrize("bound", LATENCY_BUCKETS)
def test_a_duration_right_at_a_bound_belongs_to_it(bound: float) -> None:
    cell = LatencyCell()
    cell.add(bound)
    assert cell.counts.index(1) == LATENCY_BUCKETS.index(bound) == bisect_left(LATENCY_BUCKETS, bound)


def test_bounds_are_written_as_alerting_rules_match_them() -> None:
    bounds = [bound for bound, _ in LatencyCell().cumulative()[0]]
    assert bounds[0] == "0.0001"
    assert "1.0" in bounds
    assert bounds[-2:] == ["10.0", "+Inf"]
    assert sorted(LATENCY_BUCKETS) == list(LATENCY_BUCKETS)


def test_a_request_that_ended_well_is_in_the_statistics_with_each_stage() -> None:
    recorder = Recorder()
    before = time.time_ns() // MS
    recorder.observe(seen(batch=4))
    recorder.observe(seen(batch=4))
    recorder.observe(seen(batch=1))

    got = recorder.statistics("m", "1")
    assert before <= got.last_inference <= time.time_ns() // MS
    assert (got.inferences, got.executions) == (9, 3)
    stages = (got.success, got.queue, got.compute_input, got.compute_infer, got.compute_output)
    assert [(d.count, d.ns) for d in stages] == [(3, 3 * ms * MS) for ms in (15, 2, 3, 4, 5)]
    by_size = {size: (b.compute_input, b.compute_infer, b.compute_output) for size, b in got.batches.items()}
    assert {size: [(d.count, d.ns) for d in durations] for size, durations in by_size.items()} == {
        4: [(2, 2 * ms * MS) for ms in (3, 4, 5)],
        1: [(1, ms * MS) for ms in (3, 4, 5)],
    }


def test_a_request_that_failed_is_in_the_statistics_as_a_failure_only() -> None:
    recorder = Recorder()
    recorder.observe(seen(outcome="deadline", stages=lasting(7 * MS), batch=4))
    got = recorder.statistics("m", "1")
    assert (got.fail.count, got.fail.ns) == (1, 7 * MS)
    assert (got.success.count, got.inferences, got.executions, got.last_inference) == (0, 0, 0, 0)


def test_statistics_begin_at_zero_and_are_one_record_a_version() -> None:
    recorder = Recorder()
    assert recorder.statistics("m", "1") == Statistics()
    recorder.observe(seen())
    assert recorder.statistics("m", "1").executions == 1
    assert recorder.statistics("m", "2") == Statistics()


def test_a_name_that_is_none_of_ours_makes_no_statistics() -> None:
    recorder = Recorder()
    recorder.observe(seen(OTHER, "not_found"))
    assert recorder._statistics == {}


def test_a_scrape_during_traffic_reads_whole_numbers_that_only_rise() -> None:
    recorder = Recorder()
    outcomes = [f"outcome{n}" for n in range(50)]

    def traffic() -> None:
        for n in range(20_000):
            recorder.observe(seen(outcome=outcomes[n % 50]))

    writer = Thread(target=traffic)
    writer.start()
    last: Counter[str] = Counter()
    scrapes = 0
    while writer.is_alive() or not scrapes:
        requests, seconds = recorder.collect()
        now = Counter({s.labels["outcome"]: int(s.value) for s in requests.samples})
        assert all(now[outcome] >= count for outcome, count in last.items())
        rising = [s.value for s in seconds.samples if s.name.endswith("_bucket")]
        assert all(value == int(value) for value in rising)
        last, scrapes = now, scrapes + 1
    writer.join()
    assert sum(s.value for s in next(recorder.collect()).samples) == 20_000
