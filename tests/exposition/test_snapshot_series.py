"""Series of the state at the moment of a scrape."""

from dataclasses import replace

import pytest

from inferd.exposition.snapshot_series import SnapshotCollector
from inferd.lifecycle import ModelState
from inferd.metrics.snapshot import (
    DeviceSnapshot,
    ObjectiveSnapshot,
    ServerSnapshot,
    TuningSnapshot,
    VersionSnapshot,
)
from inferd.scheduling.queue_state import QueueState
from tests.metrics import made_up
from tests.metrics.scraped import Scrape, named, scraped

CPU = DeviceSnapshot("CPU", "CPU", "f32", True, 2, 0, 4, 3, 8, 16, True, 0.5, 0.25, 0.125)
GPU = DeviceSnapshot("AUTO:GPU,CPU", "GPU.1", "f16", False, 1, 1, 0, 0, 2, 1, False, 2.0, 1.0, 0.0)
TUNING = TuningSnapshot(True, {"promoted": 2, "kept": 1}, seconds=61.5, gain=1.25, text="searching")
QUEUE = QueueState(waiting=3, waiting_bytes=4096, oldest=0.5, in_flight=5, limit=100, running=2, sequences=0)
PLAIN = replace(
    made_up.model("m", "1"),
    queue=QUEUE,
    load_seconds=1.5,
    objective=ObjectiveSnapshot(None, None, 0.999, 99.0),
    devices=(CPU,),
    tuning=None,
)
RICH = replace(
    PLAIN,
    model="n",
    version="2",
    state="UNLOADING",
    queue=replace(QUEUE, sequences=7),
    sequences_limit=64,
    objective=ObjectiveSnapshot(0.05, 0.99, 0.999, 99.0),
    devices=(CPU, GPU),
    tuning=TUNING,
)
BROKEN = VersionSnapshot("broken", "", "UNAVAILABLE", "no such file", PLAIN.requests)
SERVER = made_up.server(
    models=(PLAIN, RICH, BROKEN),
    version="1.2.3",
    openvino="2026.4",
    ready=True,
    open_calls=9,
    loads={("m", "ok"): 2, ("broken", "failed"): 1},
    rollbacks={("m", "2", "worse"): 1},
    cache_lookups={"hit": 3, "miss": 1, "refused": 0},
    reloads={"ok": 4, "failed": 1},
    busy={("m", "1"): 12.5, ("n", "2"): 0, ("gone", "1"): 3.5},
    tunings={("n", "2"): TUNING, ("gone", "1"): replace(TUNING, active=False)},
)


def collected(server: ServerSnapshot = SERVER) -> Scrape:
    return scraped(SnapshotCollector(lambda: server))


def test_readiness_of_server_and_models_is_shown() -> None:
    samples = collected()
    assert samples["inferd_ready",] == 1
    assert samples["inferd_open_calls",] == 9
    assert named(samples, "inferd_model_ready") == {("m", "1"): 1, ("n", "2"): 0, ("broken", ""): 0}
    assert collected(replace(SERVER, ready=False))["inferd_ready",] == 0


def test_each_model_is_in_exactly_one_state() -> None:
    states = named(collected(), "inferd_model_state")
    assert {(model, state) for (model, state, _), value in states.items() if value} == {
        ("m", "READY"),
        ("n", "UNLOADING"),
        ("broken", "UNAVAILABLE"),
    }
    assert len(states) == 3 * len(ModelState)


def test_what_hangs_and_what_ails_is_shown() -> None:
    place = ("m", "1", "CPU")
    server = replace(SERVER, unready={("n", "2"): "hanging"}, hung={place: 3}, replaced={place: 2})
    samples = collected(server)
    # Labels by name: model, reason, version; and device, model, version.
    assert named(samples, "inferd_model_unhealthy") == {("n", "hanging", "2"): 1}
    assert named(samples, "inferd_hung_runs_total") == {("CPU", "m", "1"): 3}
    assert named(samples, "inferd_replaced_infer_requests_total") == {("CPU", "m", "1"): 2}


def test_loads_and_looks_into_the_cache_are_counted_by_result() -> None:
    samples = collected()
    assert named(samples, "inferd_model_loads_total") == {("m", "ok"): 2, ("broken", "failed"): 1}
    assert named(samples, "inferd_model_rollbacks_total") == {("m", "worse", "2"): 1}
    assert named(samples, "inferd_reloads_total") == {("ok",): 4, ("failed",): 1}
    assert named(samples, "inferd_cache_lookups_total") == {("hit",): 3, ("miss",): 1, ("refused",): 0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("queue_length", 3),
        ("queue_bytes", 4096),
        ("queue_oldest_seconds", 0.5),
        ("in_flight_requests", 5),
        ("in_flight_limit", 100),
        ("infer_requests_busy", 2),
        ("busy_seconds_total", 12.5),
        ("sequences", 0),
        ("model_load_seconds", 1.5),
        ("objective_availability_ratio", 0.999),
    ],
)
def test_each_version_shows_what_it_has_to_do(name: str, value: float) -> None:
    assert named(collected(), f"inferd_{name}")["m", "1"] == value


def test_what_a_version_does_not_have_is_left_out() -> None:
    samples = collected()
    assert named(samples, "inferd_objective_latency_seconds") == {("n", "2"): 0.05}
    assert named(samples, "inferd_objective_latency_ratio") == {("n", "2"): 0.99}
    assert named(samples, "inferd_sequences_limit") == {("n", "2"): 64}
    assert named(samples, "inferd_tuning_active") == {("n", "2"): 1}
    assert named(samples, "inferd_tuning_gain_ratio") == {("n", "2"): 1.25}
    assert named(samples, "inferd_tuning_seconds_total") == {("n", "2"): 61.5, ("gone", "1"): 61.5}


@pytest.mark.parametrize(
    ("name", "cpu", "gpu"),
    [
        ("streams", 2, 1),
        ("streams_requested", 0, 1),
        ("threads", 4, 0),
        ("threads_requested", 3, 0),
        ("infer_requests", 8, 2),
        ("max_batch_rows", 16, 1),
        ("inline", 1, 0),
        ("model_compile_seconds", 0.5, 2),
        ("model_warm_up_seconds", 0.25, 1),
        ("model_first_inference_seconds", 0.125, 0),
    ],
)
def test_each_version_shows_what_it_runs_with_on_each_device(name: str, cpu: float, gpu: float) -> None:
    # Labels by name: device, model, version.
    assert named(collected(), f"inferd_{name}") == {
        ("CPU", "m", "1"): cpu,
        ("CPU", "n", "2"): cpu,
        ("AUTO:GPU,CPU", "n", "2"): gpu,
    }


def test_tunings_are_counted_by_how_they_ended() -> None:
    # Labels by name: decision, model, version.
    assert named(collected(), "inferd_tuning_decisions_total") == {
        ("promoted", "n", "2"): 2,
        ("kept", "n", "2"): 1,
        ("promoted", "gone", "1"): 2,
        ("kept", "gone", "1"): 1,
    }


def test_what_is_gone_has_its_counters_alone() -> None:
    assert {name for name, *labels in collected() if "gone" in labels} == {
        "inferd_busy_seconds_total",
        "inferd_tuning_decisions_total",
        "inferd_tuning_seconds_total",
    }


def test_facts_are_labels() -> None:
    samples = collected()
    ((openvino, _, version),) = named(samples, "inferd_build_info")
    assert (openvino, version) == ("2026.4", "1.2.3")
    # Labels by name: device, execution_devices, from_cache, model, precision, version.
    assert named(samples, "inferd_model_info") == {
        ("CPU", "CPU", "true", "m", "f32", "1"): 1,
        ("CPU", "CPU", "true", "n", "f32", "2"): 1,
        ("AUTO:GPU,CPU", "GPU.1", "false", "n", "f16", "2"): 1,
    }
