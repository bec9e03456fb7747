"""What can be tuned, where a result applies, and where a search begins, on a small real model."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferd.engine.model import Engine
from inferd.engine.source import ModelSource
from inferd.errors import ConfigurationError, DeviceAbsent, LoadFailed
from inferd.tuner.configure import Seeds
from inferd.tuner.plan import hints_of, key_of, plan, tunable_device
from inferd.tuning.candidates import Candidate
from inferd.tuning.goal import Goal
from tests.engine import models


@pytest.fixture(scope="module")
def engine() -> Engine:
    """With two threads to give."""
    return models.engine()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(models.scaled(2.0, (1, 4)), tmp_path_factory.mktemp("model"))


def key(engine: Engine, source: ModelSource, cpu_threads: int = 2) -> dict[str, str]:
    return key_of(engine, replace(source, cpu_threads=cpu_threads), "CPU")


def differing(engine: Engine, file: Path, one: str, other: str) -> set[str]:
    """The parts by which the results under two ``model.toml`` are kept apart."""
    a, b = (key(engine, models.source(file, toml)) for toml in (one, other))
    assert list(a) == list(b)
    return {part for part in a if a[part] != b[part]}


# -- on which device ---------------------------------------------------------------------------


def test_a_model_on_the_cpu_can_be_tuned(engine: Engine, file: Path) -> None:
    assert tunable_device(engine, models.source(file)) == ("CPU", "")


@pytest.mark.parametrize(
    ("devices", "why"),
    [
        ('["CPU", "AUTO"]', "it is served on several devices with one set of settings"),
        ('["AUTO"]', "AUTO chooses its own settings"),
        ('["AUTO:GPU,CPU"]', "AUTO chooses its own settings"),
        ('["MULTI:CPU"]', "MULTI chooses its own settings"),
        ('["HETERO:CPU"]', "HETERO chooses its own settings"),
        ('["BATCH:CPU(4)"]', "BATCH chooses its own settings"),
    ],
)
def test_where_there_is_nothing_to_tune_it_says_why(engine: Engine, file: Path, devices: str, why: str) -> None:
    assert tunable_device(engine, models.source(file, f"devices = {devices}")) == ("", why)


def test_a_device_that_is_absent_is_an_error(engine: Engine, file: Path) -> None:
    with pytest.raises(DeviceAbsent):
        tunable_device(engine, models.source(file, 'devices = ["GPU.7"]'))


# -- what a result holds for ---------------------------------------------------------------------


def test_the_same_model_in_the_same_circumstances_has_the_same_key(engine: Engine, file: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(file.parent, tmp_path / "elsewhere") / file.name
    one, other = key(engine, models.source(file)), key(engine, models.source(moved))
    assert one == other
    assert all(isinstance(part, str) for part in one.values())
    # Not as it was called while an objective was assumed: what was chosen by that is chosen again.
    assert one["objective"] == "throughput alone"
    # Another name or version of it is kept in another file, and is the same model.
    assert key(engine, replace(models.source(file, name="other"), version=9)) == one


@pytest.mark.parametrize("part", [".xml", ".bin"])
def test_a_byte_of_the_model_that_flips_makes_another_key(engine: Engine, tmp_path: Path, part: str) -> None:
    source = models.source(models.save(models.scaled(2.0), tmp_path))
    before = key(engine, source)
    changed = source.path.with_suffix(part)
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    after = key(engine, source)
    assert {name for name in before if before[name] != after[name]} == {"model"}


def test_a_file_that_is_gone_is_an_error(engine: Engine, tmp_path: Path) -> None:
    source = models.source(models.save(models.scaled(2.0), tmp_path))
    source.path.unlink()
    with pytest.raises(LoadFailed):
        key(engine, source)


def test_another_budget_of_threads_makes_another_key(engine: Engine, file: Path) -> None:
    source = models.source(file)
    two, three = key(engine, source, 2), key(engine, source, 1)
    assert {part for part in two if two[part] != three[part]} == {"CPU threads"}


@pytest.mark.parametrize(
    ("one", "other", "parts"),
    [
        ("", "[objective]\ngoal = 'latency'", {"objective"}),
        ("", "[objective]\nlatency_slo = 0.1", {"objective"}),
        ("[objective]\nlatency_slo = 0.1", "[objective]\nlatency_slo = 0.2", {"objective"}),
        ("[objective]\nlatency_slo = 0.1", "[objective]\nlatency_slo = 0.1\npercentile = 95.0", {"objective"}),
        ("", "[execution]\nmode = 'performance'", {"precision", "execution"}),
        ("", "[execution]\nprecision = 'bf16'", {"precision", "execution"}),
        ("", "[execution]\nthreads = 1", {"execution"}),
        ("", "[execution]\npath = 'sync'", {"execution"}),
        ("", "[shapes]\nx = [1, 4]", {"shapes"}),
        ("[shapes]\nx = [1, '2..4']", "[shapes]\nx = [1, '2..5']", {"shapes"}),
        ("", "[batching]\nmax_size = 4", {"batching"}),
        ("", "[preprocessing.x]\nlayout = 'NHWC'", {"preprocessing"}),
        ("", "[properties]\nLOG_LEVEL = 'LOG_NONE'", {"properties"}),
    ],
)
def test_settings_that_change_what_is_measured_make_another_key(
    engine: Engine, file: Path, one: str, other: str, parts: set[str]
) -> None:
    assert differing(engine, file, one, other) == parts


@pytest.mark.parametrize(
    "toml",
    ["[queue]\nmax_length = 3", "[share]\nweight = 2.0", "[warmup]\nruns = 0", "[versions]\ncount = 2"],
)
def test_settings_that_do_not_leave_it_as_it_is(engine: Engine, file: Path, toml: str) -> None:
    assert differing(engine, file, "", toml) == set()


def test_the_order_in_which_settings_are_written_does_not_matter(engine: Engine, file: Path) -> None:
    one = "[shapes]\nx = [1, 4]\ny = [2]\n[properties]\nA = 1\nB = 2"
    other = "[properties]\nB = 2\nA = 1\n[shapes]\ny = [2]\nx = [1, 4]"
    assert differing(engine, file, one, other) == set()


# -- the search to make ----------------------------------------------------------------------------


def test_the_hints_are_asked_what_they_would_choose(engine: Engine, file: Path) -> None:
    assert hints_of(engine, models.source(file)) == Seeds((1, 2, 1), (2, 2, 2))


def test_the_hints_are_asked_as_if_nothing_were_set(engine: Engine, file: Path) -> None:
    toml = "[objective]\ngoal = 'latency'\n[execution]\nstreams = 1\nthreads = 1\ninfer_requests = 7"
    assert hints_of(engine, models.source(file, toml)) == Seeds((1, 2, 1), (2, 2, 2))


def test_a_plan_is_what_a_search_needs(engine: Engine, file: Path) -> None:
    toml = "[objective]\nlatency_slo = 0.1\n[execution]\npath = 'auto'\n[batching]\nmax_size = 4"
    source = models.source(file, toml)
    circumstances = key(engine, source)
    made = plan(engine, source, "CPU", circumstances, Seeds((1, 2, 1), (2, 2, 2)))
    assert (made.source, made.device, made.key) == (source, "CPU", circumstances)
    assert made.goal == Goal("throughput", 0.1, 99.0)
    assert (made.space.streams, made.space.threads, made.space.batch) == ((1, 2), (1, 2), (1, 2, 4))
    assert (made.space.requests, made.space.path) == ((1, 2, 4, 8), ("async", "sync"))
    assert [(s.streams, s.threads, s.requests, s.path) for s in made.seeds] == [
        (1, 2, 1, "async"),
        (2, 2, 2, "async"),
    ]
    assert all(map(made.space.contains, made.seeds))


def test_what_was_chosen_before_is_where_it_begins_as_well(engine: Engine, file: Path) -> None:
    source = models.source(file)
    before = Candidate(2, 2, 8, pinning=False)
    made = plan(engine, source, "CPU", {}, Seeds((1, 2, 1), (2, 2, 2)), before)
    assert made.seeds[-1] == before
    assert len(made.seeds) == 3


@pytest.mark.parametrize(
    ("toml", "error"),
    [("[batching]\nmax_size = 4", ConfigurationError), ("[shapes]\nz = [1]", ConfigurationError)],
)
def test_settings_that_do_not_fit_the_model_are_an_error(
    engine: Engine, tmp_path: Path, toml: str, error: type[Exception]
) -> None:
    scalar: Any = models.save(models.scaled(2.0, ()), tmp_path)
    with pytest.raises(error):
        plan(engine, models.source(scalar, toml), "CPU", {}, Seeds((1, 2, 1), (2, 2, 2)))


def test_a_model_that_can_not_be_read_is_an_error(engine: Engine, tmp_path: Path) -> None:
    broken = tmp_path / "model.xml"
    broken.write_text("<net")
    source = models.source(broken)
    with pytest.raises(LoadFailed):
        plan(engine, source, "CPU", {}, Seeds((1, 2, 1), (2, 2, 2)))
    with pytest.raises(LoadFailed):
        hints_of(engine, source)
