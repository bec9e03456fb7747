"""Every observation is counted once, in the right series."""

import time
from collections import Counter
from dataclasses import replace
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.errors import DeadlinePassed, InferdError, QueueFull, QuotaExceeded, UnknownModel
from inferd.metrics.instruments import LATENCY_BUCKETS, OTHER, STAGES
from inferd.metrics.recorder import MOST_GONE, Recorder, VersionCounters
from inferd.metrics.statistics import Statistics
from inferd.requests import Observation, Stages
from inferd.trace_context import TraceContext
from tests.metrics.scraped import named, scraped

MS = 1_000_000
# Decoding 1 ms, queued 2, waiting to fill a batch 3, copying in 4, computing 5, hand-over 6, copying out 7, encoding 8.
REACHED = Stages(*(ms * MS for ms in (100, 101, 103, 106, 110, 115, 121, 128, 136)))
LATE = DeadlinePassed("m", "running", "running")


def seen(
    model: str = "m", error: InferdError | None = None, stages: Stages = REACHED, rows: int = 1, device: str = "CPU"
) -> Observation:
    return Observation(
        model,
        "" if model == OTHER else "1",
        "ok" if error is None else error.outcome,
        stages,
        device,
        rows=rows,
        batch_rows=rows,
        error=error,
        received_bytes=100,
        sent_bytes=10,
    )


def lasting(nanoseconds: int) -> Stages:
    """All of it spent waiting in the queue."""
    return Stages(1, 1, 0, *[1 + nanoseconds] * 6)


def test_a_request_counts_once_under_its_model_version_device_outcome_and_reason() -> None:
    recorder = Recorder()
    full, quota = QueueFull("m", "1 waiting", 0.1), QuotaExceeded("m", "c", 1, retry_after=0.1)
    for observation in (
        seen(),
        seen(),
        seen(error=LATE),
        seen(error=full, device=""),
        seen(error=full, device=""),
        seen(error=quota, device=""),
        seen("n"),
        seen(OTHER, UnknownModel("x"), device=""),
    ):
        recorder.observe(observation)

    # Labels by name: device, model, outcome, reason, version.
    assert named(scraped(recorder), "inferd_requests_total") == {
        ("CPU", "m", "ok", "", "1"): 2,
        ("CPU", "m", "deadline", "running", "1"): 1,
        ("", "m", "overloaded", "queue_full", "1"): 2,
        ("", "m", "overloaded", "quota", "1"): 1,
        ("CPU", "n", "ok", "", "1"): 1,
        ("", OTHER, "not_found", "model", ""): 1,
    }


def test_durations_are_of_what_was_answered_well() -> None:
    recorder = Recorder()
    for milliseconds in (1, 20, 300):
        recorder.observe(seen(stages=lasting(milliseconds * MS)))
    recorder.observe(seen(error=LATE, stages=lasting(5000 * MS)))
    samples = scraped(recorder)
    assert samples["inferd_request_duration_seconds_count", "m", "1"] == 3
    assert samples["inferd_request_duration_seconds_sum", "m", "1"] == pytest.approx(0.321)


def test_the_stages_of_a_request_add_up_to_its_duration() -> None:
    recorder = Recorder()
    recorder.observe(seen())
    samples = scraped(recorder)
    stages = named(samples, "inferd_stage_duration_seconds_sum")
    assert [round(stages["m", stage, "1"] * 1000) for stage in STAGES] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sum(stages.values()) == pytest.approx(samples["inferd_request_duration_seconds_sum", "m", "1"])
    assert set(named(samples, "inferd_stage_duration_seconds_count").values()) == {1}


def test_what_a_call_waited_before_it_was_seen_is_part_of_its_queue_time() -> None:
    recorder = Recorder()
    recorder.observe(seen(stages=replace(REACHED, received=REACHED.received - 70 * MS, waited=70 * MS)))
    samples = scraped(recorder)
    stages = named(samples, "inferd_stage_duration_seconds_sum")
    assert [round(stages["m", stage, "1"] * 1000) for stage in STAGES] == [1, 72, 3, 4, 5, 6, 7, 8]
    assert sum(stages.values()) == pytest.approx(samples["inferd_request_duration_seconds_sum", "m", "1"])
    assert recorder.statistics("m", "1").queue.ns == (72 + 3) * MS


def test_rows_runs_and_bytes_are_counted() -> None:
    recorder = Recorder()
    # Two requests of three rows that ran together, one that ran alone, and one that failed.
    recorder.observe(seen(rows=3)._replace(batch_rows=6))
    recorder.observe(seen(rows=3)._replace(batch_rows=6, leader=False))
    recorder.observe(seen())
    recorder.observe(seen(error=LATE))
    samples = scraped(recorder)
    assert samples["inferd_inferences_total", "m", "1"] == 7
    assert samples["inferd_batch_rows_count", "m", "1"] == 2
    assert samples["inferd_batch_rows_sum", "m", "1"] == 7
    assert samples["inferd_received_bytes_total", "m", "1"] == 400
    assert samples["inferd_sent_bytes_total", "m", "1"] == 30


def test_the_objective_is_an_exact_boundary() -> None:
    recorder = Recorder()
    recorder.follow({("m", "1"): 0.123, ("n", "1"): None})
    for nanoseconds in (123 * MS, 123 * MS + 1):
        recorder.observe(seen(stages=lasting(nanoseconds)))
        recorder.observe(seen("n", stages=lasting(nanoseconds)))
    samples = scraped(recorder)
    assert samples["inferd_request_duration_seconds_bucket", "0.123", "m", "1"] == 1
    # A model without an objective has no series, rather than a count of 0.
    assert named(samples, "inferd_objective_met_total") == {("m", "1"): 1}
    assert named(samples, "inferd_objective_missed_total") == {("m", "1"): 1}
    bounds = {labels[0] for labels in named(samples, "inferd_request_duration_seconds_bucket") if labels[1] == "n"}
    assert bounds == {*map(str, LATENCY_BUCKETS), "+Inf"}


def test_another_objective_takes_the_place_of_the_one_before() -> None:
    recorder = Recorder()
    recorder.follow({("m", "1"): 0.123})
    recorder.observe(seen(stages=lasting(124 * MS)))
    recorder.follow({("m", "1"): 0.15})
    recorder.observe(seen(stages=lasting(124 * MS)))
    samples = scraped(recorder)
    assert ("inferd_request_duration_seconds_bucket", "0.123", "m", "1") not in samples
    assert samples["inferd_request_duration_seconds_count", "m", "1"] == 2
    # Each is judged by the objective that held.
    assert samples["inferd_objective_met_total", "m", "1"] == 1
    assert samples["inferd_objective_missed_total", "m", "1"] == 1


OBJECTIVES = st.none() | st.sampled_from([0.001, 0.003, 0.05, 0.0501, 1.0, 3.0])


@given(st.lists(st.tuples(OBJECTIVES, st.lists(st.integers(0, 4 * 10**9), max_size=5)), max_size=6))
def test_each_answer_is_judged_once_by_the_objective_that_held(
    steps: list[tuple[float | None, list[int]]],
) -> None:
    counters, met, missed = VersionCounters(), 0, 0
    for objective, durations in steps:
        counters.set_objective(objective)
        assert counters.judged() == (met, missed)
        for duration in durations:
            counters.add(seen(stages=lasting(duration)))
            if objective is not None:
                met += duration <= round(objective * 1e9)
                missed += duration > round(objective * 1e9)
        assert counters.judged() == (met, missed)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def versions(recorder: Recorder) -> dict[tuple[str, str], float]:
    """Requests by model and version, as a scrape has them."""
    found: Counter[tuple[str, str]] = Counter()
    for (_, model, _, _, version), number in named(scraped(recorder), "inferd_requests_total").items():
        found[model, version] += int(number)
    return dict(found)


def test_counters_of_a_version_stay_for_the_grace_after_the_first_scrape_that_had_their_last_value() -> None:
    clock = Clock()
    recorder = Recorder(60, clock)
    recorder.follow({("m", "1"): 0.05, ("n", "1"): None})
    recorder.observe(seen())
    recorder.follow({("n", "1"): None})
    # Long after, and without a scrape: the counts are not lost.
    clock.now += 10_000
    assert versions(recorder) == {("m", "1"): 1}
    assert scraped(recorder)["inferd_objective_met_total", "m", "1"] == 1
    clock.now += 59
    recorder.observe(seen(error=LATE))
    assert versions(recorder) == {("m", "1"): 2}
    clock.now += 59
    assert versions(recorder) == {("m", "1"): 2}
    clock.now += 1
    assert {labels[1:] for name, *labels in scraped(recorder) if "m" in labels} == set()
    assert recorder.follow({("n", "1"): None}) == {("m", "1")}
    assert recorder.follow({("n", "1"): None}) == frozenset()


def test_a_version_that_comes_back_counts_on_within_the_grace_and_from_nothing_after() -> None:
    clock = Clock()
    recorder = Recorder(60, clock)
    recorder.follow({("m", "1"): None})
    recorder.observe(seen())
    for wait, total in ((59, 2), (59, 3), (60, 1)):
        recorder.follow({})
        scraped(recorder)
        clock.now += wait
        scraped(recorder)
        recorder.follow({("m", "1"): None})
        recorder.observe(seen())
        assert versions(recorder) == {("m", "1"): total}
        assert recorder.statistics("m", "1").success.count == total


def test_without_a_grace_nothing_of_what_is_gone_is_shown() -> None:
    recorder = Recorder(0)
    recorder.follow({("m", "1"): None, ("m", "2"): None})
    for version in ("1", "2"):
        recorder.observe(seen()._replace(version=version))
    recorder.follow({("m", "2"): None})
    assert versions(recorder) == {("m", "2"): 1}


def test_of_too_many_that_are_gone_those_that_left_first_lose_their_counters() -> None:
    recorder = Recorder(60)
    names = [f"m{at}" for at in range(MOST_GONE + 10)]
    dropped: set[tuple[str, str]] = set()
    for name in [*names, *names[-5:]]:
        recorder.follow({(name, "1"): None})
        recorder.observe(seen(name))
    recorder.observe(seen(OTHER, UnknownModel("x")))
    dropped |= recorder.follow({})
    assert versions(recorder).keys() == {(name, "1") for name in names[10:]} | {(OTHER, "")}
    assert dropped == {(names[9], "1")}


def test_what_is_refused_under_no_version_stays_while_the_model_has_one_or_is_asked_for() -> None:
    clock = Clock()
    recorder = Recorder(60, clock)
    refused = seen(error=QueueFull("m", "", 0.1))._replace(version="")
    recorder.follow({("m", "1"): None})
    recorder.observe(refused)
    for _ in range(3):
        clock.now += 100
        assert versions(recorder) == {("m", ""): 1}
    recorder.follow({})
    for number in (2, 3):
        clock.now += 59
        recorder.observe(refused)
        assert versions(recorder) == {("m", ""): number}
    clock.now += 60
    assert versions(recorder) == {}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("hold"), st.sets(st.sampled_from(["a", "b", "c"]))),
        st.tuples(st.just("count"), st.sampled_from(["a", "b", "c"])),
        st.tuples(st.just("wait"), st.integers(0, 90)),
        st.tuples(st.just("scrape"), st.just(0)),
    )
)


@given(STEPS)
def test_what_scrapes_see_adds_up_to_what_was_counted(steps: list[tuple[str, object]]) -> None:
    """As Prometheus adds: by how much a series rose, or all of it where it has fallen or has just come."""
    clock = Clock()
    recorder = Recorder(60, clock)
    counted: Counter[str] = Counter()
    risen: Counter[str] = Counter()
    last: dict[str, float] = {}
    for what, value in [*steps, ("scrape", 0)]:
        match value:
            case set():
                recorder.follow({(name, "1"): None for name in value})
            case str():
                recorder.observe(seen(value))
                counted[value] += 1
            case int() if what == "wait":
                clock.now += value
            case _:
                now = {model: number for (model, _), number in versions(recorder).items()}
                for name, number in now.items():
                    before = last.get(name, 0)
                    risen[name] += int(number - before if number >= before else number)
                # What is not there any more begins from nothing.
                last = dict.fromkeys(last, 0.0) | now
    assert risen == counted


def test_a_version_has_its_series_from_the_start() -> None:
    recorder = Recorder()
    recorder.follow({("m", "1"): 0.1})
    samples = scraped(recorder)
    assert samples["inferd_request_duration_seconds_count", "m", "1"] == 0
    assert samples["inferd_inferences_total", "m", "1"] == 0
    assert samples["inferd_objective_met_total", "m", "1"] == 0


@pytest.mark.parametrize(("sampled", "shown"), [(True, ["a" * 32]), (False, [])])
def test_only_a_sampled_trace_is_an_exemplar(sampled: bool, shown: list[str]) -> None:
    recorder = Recorder()
    recorder.observe(seen()._replace(trace=TraceContext("a" * 32, "b" * 16, "", sampled)))
    exemplars = [
        sample.exemplar.labels["trace_id"]
        for family in recorder.collect()
        for sample in family.samples
        if sample.exemplar
    ]
    assert exemplars == shown


def test_a_request_that_ended_well_is_in_the_statistics_with_each_stage() -> None:
    recorder = Recorder()
    now, clock = time.time_ns(), time.monotonic_ns()
    reached = Stages(*(clock + ms * MS for ms in (-36, -35, -33, -30, -26, -21, -15, -8, 0)))
    for batch in (4, 4, 1):
        recorder.observe(seen(rows=batch, stages=reached))

    got = recorder.statistics("m", "1")
    assert got.last_inference == pytest.approx(now / MS, abs=1000)
    assert (got.inferences, got.executions) == (9, 3)
    stages = (got.success, got.queue, got.compute_input, got.compute_infer, got.compute_output)
    assert [(d.count, d.ns) for d in stages] == [(3, 3 * ms * MS) for ms in (36, 5, 4, 5, 21)]
    by_size = {size: (b.compute_input, b.compute_infer, b.compute_output) for size, b in got.batches.items()}
    assert {size: [(d.count, d.ns) for d in durations] for size, durations in by_size.items()} == {
        4: [(2, 2 * ms * MS) for ms in (4, 5, 21)],
        1: [(1, ms * MS) for ms in (4, 5, 21)],
    }


def test_a_request_that_failed_is_in_the_statistics_as_a_failure_only() -> None:
    recorder = Recorder()
    recorder.observe(seen(error=LATE, stages=lasting(7 * MS), rows=4))
    got = recorder.statistics("m", "1")
    assert (got.fail.count, got.fail.ns) == (1, 7 * MS)
    assert (got.success.count, got.inferences, got.executions, got.last_inference) == (0, 0, 0, 0)


def test_statistics_begin_at_zero_and_asking_for_them_makes_no_series() -> None:
    recorder = Recorder()
    assert recorder.statistics("m", "1") == Statistics()
    recorder.observe(seen())
    assert recorder.statistics("m", "1").executions == 1
    assert recorder.statistics("m", "2") == Statistics()
    assert {labels[1:] for labels in named(scraped(recorder), "inferd_request_duration_seconds_count")} == {("1",)}


def test_a_name_that_is_none_of_ours_has_no_histograms() -> None:
    recorder = Recorder()
    recorder.observe(seen(OTHER, UnknownModel("x"), device=""))
    assert {name for name, *_ in scraped(recorder)} == {"inferd_requests_total", "inferd_received_bytes_total"}


def test_a_scrape_during_traffic_reads_whole_numbers_that_only_rise() -> None:
    recorder = Recorder()
    devices = [f"GPU.{n}" for n in range(50)]

    def traffic() -> None:
        for n in range(20_000):
            recorder.observe(seen(device=devices[n % 50]))

    writer = Thread(target=traffic)
    writer.start()
    last: Counter[str] = Counter()
    scrapes = 0
    while writer.is_alive() or not scrapes:
        families = {family.name: list(family.samples) for family in recorder.collect()}
        now = Counter({s.labels["device"]: int(s.value) for s in families["inferd_requests"]})
        assert all(now[device] >= count for device, count in last.items())
        buckets = [s.value for s in families["inferd_request_duration_seconds"] if s.name.endswith("_bucket")]
        assert buckets == sorted(buckets)
        assert all(value == int(value) for value in buckets)
        last, scrapes = now, scrapes + 1
    writer.join()
    assert sum(named(scraped(recorder), "inferd_requests_total").values()) == 20_000
