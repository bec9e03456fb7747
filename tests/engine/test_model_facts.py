"""Facts that an engine reports about models and devices without serving."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from inferd.engine.cache import BlobCache
from inferd.engine.model import Engine, Hint
from inferd.engine.runtime import ov
from inferd.engine.source import ModelSource
from inferd.engine.topology import Tunables
from inferd.errors import ConfigurationError, DeviceAbsent, LoadFailed
from tests.engine import models

HINTS: tuple[Hint, ...] = ("latency", "throughput")


def source(folder: Path, toml: str = "", network: "ov.Model | None" = None) -> ModelSource:
    return models.source(models.save(network or models.scaled(2, [1, 4]), folder / "model"), toml)


# -- what a hint would choose --------------------------------------------------------


@pytest.mark.parametrize("hint", HINTS)
def test_a_hint_chooses_what_a_load_under_it_would_have(hint: Hint, tmp_path: Path) -> None:
    engine = models.engine()
    chosen = engine.hinted(source(tmp_path), "CPU", hint)
    loaded = engine.load(source(tmp_path, f'[objective]\ngoal = "{hint}"\n[execution]\npath = "async"'))
    assert chosen == loaded.pools[0].effective
    assert chosen.performance_hint == hint
    loaded.close()


@pytest.mark.parametrize("hint", HINTS)
def test_the_numbers_in_the_settings_are_left_to_the_hint(hint: Hint, tmp_path: Path) -> None:
    engine = models.engine()
    numbers = "streams = 2\nthreads = 1\ninfer_requests = 7"
    set_ = engine.hinted(source(tmp_path, f"[execution]\n{numbers}"), "CPU", hint)
    assert set_ == engine.hinted(source(tmp_path), "CPU", hint)


def test_all_else_stays_as_the_settings_have_it(tmp_path: Path) -> None:
    toml = '[objective]\ngoal = "throughput"\n[execution]\nprecision = "f32"\nmode = "performance"\npinning = "off"'
    chosen = models.engine().hinted(source(tmp_path, toml), "CPU", "latency")
    assert (chosen.precision, chosen.execution_mode, chosen.choices["pinning"]) == ("f32", "performance", False)
    assert chosen.performance_hint == "latency"


def test_a_hint_has_no_more_threads_than_the_budget(tmp_path: Path) -> None:
    engine = Engine(1, BlobCache(Path("unused"), 0))
    for hint in HINTS:
        chosen = engine.hinted(source(tmp_path), "CPU", hint)
        assert (chosen.threads, chosen.streams) == (1, 1)


def test_both_hints_and_the_load_share_one_blob(tmp_path: Path) -> None:
    engine, made = models.engine(cache=tmp_path / "cache"), source(tmp_path)
    for hint in HINTS:
        engine.hinted(made, "CPU", hint)
    assert len(list((tmp_path / "cache").glob("*.blob"))) == 1
    assert engine.load(made).pools[0].from_cache


def test_what_can_not_be_loaded_has_no_hint_either(tmp_path: Path) -> None:
    engine = models.engine()
    with pytest.raises(DeviceAbsent):
        engine.hinted(source(tmp_path), "GPU.7", "latency")
    with pytest.raises(ConfigurationError):
        engine.hinted(source(tmp_path, "[shapes]\nz = [4]"), "CPU", "latency")
    with pytest.raises(LoadFailed, match="on CPU: "):
        engine.hinted(source(tmp_path, "[properties]\nNO_SUCH_PROPERTY = 1"), "CPU", "latency")


# -- devices -------------------------------------------------------------------------


def test_the_cpu_s_tunables_are_within_the_budget_and_can_all_be_had(tmp_path: Path) -> None:
    engine = models.engine()
    found = engine.tunable("CPU")
    assert found.streams == (1, min(2, len(os.sched_getaffinity(0))))
    assert (found.threads, found.choices["pinning"]) == (2, (True, False))
    for streams in range(found.streams[0], found.streams[1] + 1):
        loaded = engine.load(source(tmp_path, f"[execution]\nstreams = {streams}"))
        assert loaded.pools[0].effective.streams == streams
        loaded.close()


def test_a_batching_device_is_tuned_as_what_it_wraps() -> None:
    engine = models.engine()
    assert engine.tunable("BATCH:CPU(4)") == engine.tunable("CPU")


@pytest.mark.parametrize("device", ["AUTO", "AUTO:CPU", "HETERO:CPU", "MULTI:CPU", "GPU.7", "NPU"])
def test_compound_and_absent_devices_have_nothing_to_tune(device: str) -> None:
    assert models.engine().tunable(device) == Tunables()


def test_a_device_is_called_what_it_is() -> None:
    engine = models.engine()
    name = ov.Core().get_property("CPU", "FULL_DEVICE_NAME")
    assert engine.device_name("CPU") == name
    assert {engine.device_name(d) for d in ("AUTO:CPU", "HETERO:CPU", "BATCH:CPU(4)")} == {name}
    assert name in engine.device_name("AUTO")


@pytest.mark.parametrize("device", ["CPU", "AUTO:CPU", "GPU.7"])
def test_a_device_without_a_driver_has_no_driver_version(device: str) -> None:
    assert models.engine().driver(device) == ""


class GpuCore:
    """A core with GPUs, of which all that is asked here was only read about."""

    available_devices = ("CPU", "GPU.0", "GPU.1")

    def get_property(self, device: str, name: str) -> Any:
        told = {"FULL_DEVICE_NAME": f"Device {device}", "RANGE_FOR_STREAMS": (1, 2)}
        if device.startswith("GPU"):
            told["GPU_DRIVER_VERSION"] = "25.1"
        if name not in told:
            raise RuntimeError(f"Unsupported property {name}")
        return told[name]


def test_devices_with_drivers_tell_their_versions() -> None:
    engine = models.engine()
    engine._core = GpuCore()
    assert (engine.driver("GPU.1"), engine.driver("CPU")) == ("25.1", "")
    assert engine.driver("AUTO:GPU.0,CPU") == "25.1"
    assert engine.device_name("MULTI:GPU.0,CPU") == "Device GPU.0, Device CPU"
    assert engine.device_name("AUTO") == "Device CPU, Device GPU.0, Device GPU.1"
    assert engine.tunable("GPU.1") == Tunables(streams=(1, 2))
    assert engine.tunable("BATCH:GPU.0(16)") == Tunables(streams=(1, 2))


# -- digests -------------------------------------------------------------------------


def test_a_digest_follows_the_content_of_every_file_and_nothing_else(tmp_path: Path) -> None:
    one, other = (source(tmp_path / name) for name in ("one", "other"))
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    copy = models.source(tmp_path / "copy" / one.path.relative_to(tmp_path / "one"))
    digest = one.settled().digest
    assert copy.settled().digest == digest
    for kept, changed in ((".xml", ".bin"), (".bin", ".xml")):
        ours, theirs = one.path, other.path
        theirs.with_suffix(kept).write_bytes(ours.with_suffix(kept).read_bytes())
        theirs.with_suffix(changed).write_bytes(ours.with_suffix(changed).read_bytes() + b"\n")
        assert other.settled().digest != digest
    assert models.source(one.path, "[execution]\nstreams = 2", name="another").settled().digest == digest
    assert len(digest) == 64


def test_a_file_that_has_gone_has_no_digest(tmp_path: Path) -> None:
    given = source(tmp_path)
    given.path.unlink()
    with pytest.raises(LoadFailed, match=r"model\.xml: can't be read$"):
        given.settled()
