"""Candidates measured on real models, in this process and in a separate one."""

import gc
import math
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferd.engine.device import Effective
from inferd.engine.source import ModelSource
from inferd.engine.warmup import synthetic_inputs
from inferd.errors import LoadFailed
from inferd.tensors import DType
from inferd.tuner.probe import Probe, effective_of
from inferd.tuner.probe_process import ProbeJob, ProbeProcess, placement_of
from inferd.tuning.candidates import Candidate
from inferd.tuning.measurement import Measurement, MeasurementWindow
from tests.engine import models
from tests.engine.models import op, parameter, tensor
from tests.tuning.probes import kill, probes

ONE = Candidate(1, 2, 1)
WINDOW = 0.02
BATCHED = "[batching]\nmax_size = 8"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def source(folder: Path, network: Any = None, toml: str = "") -> ModelSource:
    return models.source(models.save(network or models.scaled(2.0), folder), toml)


def probing(model: ModelSource, cache: Path, samples: Any = ()) -> Probe:
    return Probe(models.engine(cache), model, WINDOW, samples=samples)


def rows() -> Any:
    """Twice of each row of 4."""
    x = parameter([-1, 4])
    return models.model({"y": op.multiply(x, op.constant(np.float32(2)))}, [x])


# -- here ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["async", "sync"])
def test_a_look_brings_as_many_windows_as_asked_for_and_what_it_cost(path: Any, tmp_path: Path, cache: Path) -> None:
    candidate = replace(ONE, requests=3, path=path)
    with probing(source(tmp_path), cache) as probe:
        begun = time.monotonic()
        seen = probe.measure(candidate, 3)
        elapsed = time.monotonic() - begun
    assert (seen.asked, seen.effective, seen.failure) == (candidate, candidate, None)
    assert [len(w.latencies) > 0 and w.seconds >= WINDOW for w in seen.windows] == [True] * 3
    assert sum(w.seconds for w in seen.windows) < seen.cost <= elapsed


def test_what_the_device_made_of_a_candidate_is_told(tmp_path: Path, cache: Path) -> None:
    # The engine of these tests has two threads to give.
    with probing(source(tmp_path), cache) as probe:
        seen = probe.measure(Candidate(5, 9, 5, pinning=True), 1)
    assert seen.effective == Candidate(2, 2, 5, pinning=True)
    assert seen.windows


def test_batches_are_runs_of_several_requests(tmp_path: Path, cache: Path) -> None:
    with probing(source(tmp_path, rows(), BATCHED), cache) as probe:
        alone, together = (probe.measure(replace(ONE, batch=batch), 1) for batch in (1, 8))
        one, many = (probe._loaded[c].dispatcher for c in (ONE, replace(ONE, batch=8)))
        assert (one.scheduler._rules.batch.max_rows, many.scheduler._rules.batch.max_rows) == (1, 8)
    assert alone.failure is together.failure is None
    assert together.effective.batch == 8


@pytest.mark.parametrize(
    ("toml", "candidate", "failure"),
    [
        ("[properties]\nNO_SUCH_PROPERTY = 1", ONE, "NO_SUCH_PROPERTY"),
        ("[warmup.shapes]\nz = [1]", ONE, "warmup.shapes.z: no such input"),
        ("devices = ['GPU.7']", ONE, "GPU.7"),
    ],
    ids=["does not compile", "does not warm up", "no device"],
)
def test_a_candidate_that_can_not_be_loaded_is_a_failed_measurement(
    toml: str, candidate: Candidate, failure: str, tmp_path: Path, cache: Path
) -> None:
    with probing(source(tmp_path, toml=toml), cache) as probe:
        seen = probe.measure(candidate, 2)
        assert (seen.asked, seen.effective, seen.windows) == (candidate, candidate, ())
        assert seen.failure is not None
        assert failure in seen.failure
        assert seen.cost > 0


def test_arriving_at_one_that_can_not_be_loaded_raises(tmp_path: Path, cache: Path) -> None:
    with (
        probing(source(tmp_path, toml="[properties]\nNO_SUCH_PROPERTY = 1"), cache) as probe,
        pytest.raises(LoadFailed, match="NO_SUCH_PROPERTY"),
    ):
        probe.arrive(ONE, 10.0, 0.01)


IMPOSSIBLE = [tensor([1, 2, 3, 4]), tensor([2, 3], DType.INT64)]
POSSIBLE = [tensor([1, 2, 3, 4]), tensor([2, 4], DType.INT64)]


def test_one_that_fails_while_it_runs_is_a_failed_measurement_and_the_next_look_is_fresh(
    tmp_path: Path, cache: Path
) -> None:
    model = source(tmp_path, models.broadcasting(), "[warmup]\nruns = 0")
    samples = [[*POSSIBLE]]
    with probing(model, cache, samples) as probe:
        assert probe.measure(ONE, 1).failure is None
        samples[0] = IMPOSSIBLE
        seen = probe.measure(ONE, 1)
        assert seen.failure is not None
        assert "inference failed" in seen.failure
        assert (seen.windows, seen.effective) == ((), ONE)
        samples[0] = POSSIBLE
        assert probe.measure(ONE, 1).failure is None


def test_without_samples_inputs_are_made_up_as_for_warm_up(tmp_path: Path, cache: Path) -> None:
    model = source(tmp_path, models.identity((-1, 3)), "[warmup.shapes]\nx = [5, 3]")
    with probing(model, cache) as probe:
        assert probe.measure(ONE, 1).failure is None
        [loaded] = probe._loaded.values()
        [sample] = probe._traffic(loaded, ONE).samples
        assert sample == synthetic_inputs(model, loaded.model.signature)
    assert [(s.dtype, s.shape) for s in sample] == [(DType.FP32, (5, 3))]


def test_a_model_that_keeps_its_state_is_measured_too(tmp_path: Path, cache: Path) -> None:
    model = source(tmp_path, models.stateful(), "[sequences]\nmax_active = 64")
    candidate = replace(ONE, requests=2)
    with probing(model, cache) as probe:
        assert probe.measure(candidate, 2).failure is None
        window = probe.arrive(candidate, 200.0, 0.05)
    assert window.latencies
    assert all(map(math.isfinite, window.latencies))


def test_random_arrivals_are_timed(tmp_path: Path, cache: Path) -> None:
    # An objective in the settings refuses nothing here: whether it is kept is the question.
    with probing(source(tmp_path, toml="[objective]\nlatency_slo = 0.000001"), cache) as probe:
        window = probe.arrive(replace(ONE, requests=2), 300.0, 0.1)
    assert window.seconds == 0.1
    assert len(window.latencies) > 10
    assert all(map(math.isfinite, window.latencies))


def test_few_candidates_stay_loaded_and_those_that_were_looked_at_last(tmp_path: Path, cache: Path) -> None:
    candidates = [replace(ONE, requests=n) for n in range(1, 6)]
    with probing(source(tmp_path), cache) as probe:
        for candidate in candidates[:3]:
            assert probe.measure(candidate, 1).failure is None
        oldest = weakref.ref(probe._loaded[candidates[1]].model.pools[0].pool)
        first = probe._loaded[candidates[0]]
        probe.measure(candidates[0], 1)
        assert probe._loaded[candidates[0]] is first
        for candidate in candidates[3:]:
            assert probe.measure(candidate, 1).failure is None
            assert len(probe._loaded) == 3
        assert set(probe._loaded) == {candidates[0], *candidates[3:]}
        gc.collect()
        assert oldest() is None
        # One that had to go is loaded again.
        assert probe.measure(candidates[1], 1).failure is None
        assert len(probe._loaded) == 3


def test_closing_frees_all_and_closing_again_is_harmless(tmp_path: Path, cache: Path) -> None:
    probe = probing(source(tmp_path), cache)
    probe.measure(ONE, 1)
    pool = weakref.ref(probe._loaded[ONE].model.pools[0].pool)
    probe.close()
    gc.collect()
    assert pool() is None
    probe.close()


def test_one_that_was_never_used_can_be_closed(tmp_path: Path, cache: Path) -> None:
    probing(source(tmp_path), cache).close()


# -- what the device made of it ------------------------------------------------------------------

SAID = Effective(
    "f32", "accuracy", "throughput", 2, 4, 2, ("CPU",), {"pinning": True, "hyper_threading": False, "core_type": "any"}
)


@pytest.mark.parametrize(
    ("asked", "said", "effective"),
    [
        (Candidate(3, 9, 8), SAID, Candidate(2, 4, 6)),
        # Left to the device: what that chose is not the candidate's.
        (Candidate(2, 4, 6, 8), SAID, Candidate(2, 4, 6, 8)),
        (
            Candidate(2, 4, 6, 1, False, True, "performance", "sync"),
            SAID,
            Candidate(2, 4, 6, 1, True, False, "any", "sync"),
        ),
        # What it does not tell is believed.
        (
            Candidate(2, 3, 6, 1, True, True, "efficient"),
            replace(SAID, streams=0, threads=0, choices={"pinning": None, "hyper_threading": None, "core_type": None}),
            Candidate(2, 3, 6, 1, True, True, "efficient"),
        ),
    ],
    ids=["clamped", "left open", "ignored", "unknown"],
)
def test_a_candidate_as_the_device_took_it(asked: Candidate, said: Effective, effective: Candidate) -> None:
    assert effective_of(asked, said, 6) == effective


# -- in a process of its own -----------------------------------------------------------------------

PINNED = replace(ONE, pinning=True)


def job(model: ModelSource, cache: Path, **more: Any) -> ProbeJob:
    return ProbeJob(model, cache, 1 << 30, 2, WINDOW, **more)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[ProbeProcess]:
    """One for several tests: a child takes a second or two to start."""
    model = source(tmp_path_factory.mktemp("model"), models.broadcasting(), "[warmup]\nruns = 0")
    with ProbeProcess(job(model, cache, nice=1, samples=[POSSIBLE])) as probe:
        yield probe


def assert_sound(seen: Measurement, candidate: Candidate, windows: int) -> None:
    assert (seen.asked, seen.effective, seen.failure) == (candidate, candidate, None)
    assert len(seen.windows) == windows
    assert all(w.latencies for w in seen.windows)


def test_a_process_measures_as_a_probe_does(process: ProbeProcess) -> None:
    candidate = Candidate(2, 2, 4)
    assert_sound(process.measure(candidate, 2), candidate, 2)
    window = process.arrive(candidate, 200.0, 0.05)
    assert isinstance(window, MeasurementWindow)
    assert all(map(math.isfinite, window.latencies))


def test_it_tells_what_the_hints_would_choose(process: ProbeProcess) -> None:
    hints = process.hints()
    assert (hints.latency, hints.throughput) == ((1, 2, 1), (2, 2, 2))


def test_each_way_of_placing_threads_has_a_process_and_keeps_it(process: ProbeProcess) -> None:
    assert placement_of(ONE) != placement_of(PINNED) != placement_of(None)
    assert placement_of(replace(PINNED, streams=2, requests=4, path="sync")) == placement_of(PINNED)
    assert_sound(process.measure(ONE, 1), ONE, 1)
    before = probes()
    assert_sound(process.measure(PINNED, 1), PINNED, 1)
    both = probes()
    assert before < both
    assert_sound(process.measure(ONE, 1), ONE, 1)
    assert_sound(process.measure(replace(PINNED, requests=2), 1), replace(PINNED, requests=2), 1)
    assert probes() == both


def test_one_that_crashes_is_a_failed_measurement_and_the_next_look_works_again(process: ProbeProcess) -> None:
    assert_sound(process.measure(ONE, 1), ONE, 1)
    before = probes()
    with ThreadPoolExecutor() as elsewhere:
        # An hour or so.
        look = elsewhere.submit(process.measure, ONE, 100_000)
        while not look.done():
            for child in probes():
                kill(child)
        seen = look.result()
    assert (seen.asked, seen.windows, seen.failure) == (ONE, (), "its process ended")
    assert_sound(process.measure(ONE, 1), ONE, 1)
    assert probes().isdisjoint(before)


def test_one_that_is_gone_when_it_is_asked_is_a_failure_as_well(process: ProbeProcess) -> None:
    assert_sound(process.measure(ONE, 1), ONE, 1)
    for child in probes():
        kill(child)
    assert process.arrive(ONE, 10.0, 0.01) is None


def test_whoever_stops_it_ends_the_look_in_progress_and_all_to_come(tmp_path: Path, cache: Path) -> None:
    before = probes()
    with ProbeProcess(job(source(tmp_path), cache)) as probe:
        assert_sound(probe.measure(ONE, 1), ONE, 1)
        assert len(probes() - before) == 1
        with ThreadPoolExecutor() as elsewhere:
            look = elsewhere.submit(probe.measure, ONE, 100_000)
            probe.kill()
            seen = look.result()
        # Whether the question had reached it or not.
        assert seen.failure in ("its process ended", "measuring was stopped")
        probe.kill()
        assert probe.measure(PINNED, 1) == Measurement(PINNED, PINNED, (), 0.0, "measuring was stopped")
        assert probe.arrive(PINNED, 10.0, 0.01) is None
        with pytest.raises(LoadFailed, match="measuring was stopped"):
            probe.hints()
        assert probes() == before


def test_a_candidate_that_can_not_be_loaded_fails_and_the_process_goes_on(tmp_path: Path, cache: Path) -> None:
    model, before = source(tmp_path, toml="[properties]\nNO_SUCH_PROPERTY = 1"), probes()
    with ProbeProcess(job(model, cache)) as probe:
        assert "NO_SUCH_PROPERTY" in (probe.measure(ONE, 1).failure or "")
        started = probes()
        assert len(started - before) == 1
        assert probe.arrive(ONE, 10.0, 0.01) is None
        assert "NO_SUCH_PROPERTY" in (probe.measure(replace(ONE, requests=2), 1).failure or "")
        assert probes() == started
        with pytest.raises(LoadFailed, match="NO_SUCH_PROPERTY") as failed:
            probe.hints()
        assert str(failed.value).count("failed to load") == 1
    assert probes() == before
    # Closed, and harmless when closed again or killed after.
    probe.close()
    probe.kill()


def test_one_that_never_started_can_be_closed_and_killed(tmp_path: Path, cache: Path) -> None:
    before = probes()
    with ProbeProcess(job(source(tmp_path), cache)) as probe:
        pass
    probe.close()
    probe.kill()
    assert probes() == before
