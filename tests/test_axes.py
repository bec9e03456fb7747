"""The table of axes: one row is all that a new device axis takes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inferd.axes import AXES, CHOICES, DEVICE_CHOICES, QUANTITIES
from inferd.config.model import ExecutionSettings

PACKAGE = Path(__file__).resolve().parent.parent / "daemon" / "inferd"

# Whether numbers too small for a normal float are taken for 0: a property of OpenVINO's CPU plugin.
ROW = """
    denormals: bool | None = field(
        default=None,
        metadata=_row(
            ChoiceAxis(
                words={"zero": True, "kept": False},
                help="Whether denormal numbers are taken for 0.",
                texts={True: "denormals 0", False: "denormals kept"},
                heading="denormals",
                property="CPU_DENORMALS_OPTIMIZATION",
                families=_CPU,
                offered=lambda _: (False, True),
            )
        ),
    )
"""

USES_IT = """
import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import openvino as ov

from inferd.cli import tune, tune_display
from inferd.config.model import ModelConfig, parse
from inferd.content import Bounds, FileSet
from inferd.engine.cache import BlobCache
from inferd.engine.device import compile_properties
from inferd.engine.model import Engine
from inferd.engine.source import ModelSource
from inferd.engine.topology import CpuTopology, tunables
from inferd.errors import ConfigurationError
from inferd.rpc import tuning
from inferd.tensors import Dim, DType, Signature, TensorSpec
from inferd.tuner.configure import configured, space_of
from inferd.tuner.probe import effective_of
from inferd.tuner.profile import Profile, Profiles
from inferd.tuning.candidates import Candidate
from inferd.tuning.deltas import delta_between, delta_text

folder = Path(sys.argv[1])
ONE = Candidate(1, 2, 1)
ZERO = replace(ONE, denormals=True)

# Settings: its words, and those alone; its property is the table's.
config = parse('[execution]\\ndenormals = "zero"\\npath = "async"', "m/model.toml")
for wrong in ('[execution]\\ndenormals = "some"', '[properties]\\nCPU_DENORMALS_OPTIMIZATION = true'):
    try:
        parse(wrong, "m/model.toml")
        raise SystemExit(f"taken: {wrong}")
    except ConfigurationError as error:
        print(error)
assert compile_properties("CPU", config, 2)["CPU_DENORMALS_OPTIMIZATION"] is True
assert "CPU_DENORMALS_OPTIMIZATION" not in compile_properties("CPU", ModelConfig(), 2)

# The search: what may be tried, in words, what needs a compile, and back into settings.
dims = (Dim(1, 1), Dim(4, 4))
signature = Signature((TensorSpec("x", DType.FP32, dims),), (TensorSpec("y", DType.FP32, dims),), 0)
offered = tunables("CPU", (1, 2), 2, CpuTopology(2, 2, ()))
space = space_of(ModelConfig(), signature, offered)
assert {c.denormals for c in space.all()} == {c.denormals for c in space.spread(64)} == {True, False}
assert {c.denormals for c in space_of(config, signature, offered).all()} == {True}
member = replace(space.clip(ONE), denormals=True)
assert replace(member, denormals=False) in space.neighbours(member)
assert ONE.compile_key != ZERO.compile_key
assert ZERO.describe() == "1 stream, 2 threads, 1 request, batch 1, denormals 0, async"
assert delta_text(delta_between(ONE, ZERO)) == "denormals on"
assert configured(ModelConfig(), ZERO).execution.denormals == "zero"

# Profiles, also those from before it was there.
profiles = Profiles(folder / "profiles")
profile = Profile("m", 1, "CPU", {}, ZERO, "", None, 99.0, False, 1.0, "now", {}, ())
profiles.store(profile)
assert profiles.stored("m", 1, "CPU").winner == ZERO
[file] = (folder / "profiles").rglob("*.json")
before = json.loads(file.read_text())
del before["winner"]["denormals"]
file.write_text(json.dumps(before))
assert profiles.stored("m", 1, "CPU").winner == ONE

# The command line, the service, and the table of results.
parser = argparse.ArgumentParser()
tune.add_arguments(parser)
wanted = tune._settings(parser.parse_args(["pin", "m", "--denormals", "zero"]))
assert tuning._changed("m", wanted, ONE) == ZERO
assert "denormals" in tune_display._columns([ZERO]) and "denormals" not in tune_display._columns([ONE])

# A compiled model.
x = ov.op.Parameter(ov.Type.f32, ov.PartialShape([-1, 4]))
path = folder / "model.xml"
ov.save_model(ov.Model([ov.opset13.relu(x)], [x], "m"), path)
for word, value in (("zero", True), ("kept", False)):
    settings = parse(f'[execution]\\ndenormals = "{word}"\\npath = "async"', "m/model.toml")
    source = ModelSource("m", 1, FileSet(path, None, Bounds(folder)), settings)
    loaded = Engine(2, BlobCache(folder / "cache", 1 << 30)).load(source)
    [entry] = loaded.pools
    assert entry.effective.choices["denormals"] is value
    assert effective_of(ZERO, entry.effective, 1).denormals is value
    loaded.close()
"""


def test_a_device_axis_is_one_row(tmp_path: Path) -> None:
    copy = tmp_path / "daemon" / "inferd"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    table = copy / "axes.py"
    text = table.read_text()
    place = "\n    path: ExecutionPath = field("
    assert text.count(place) == 1
    table.write_text(text.replace(place, ROW + place.removeprefix("\n")))
    done = subprocess.run(
        [sys.executable, "-c", USES_IT, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(copy.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "m/model.toml: execution.denormals: got 'some'; allowed: 'auto', 'zero' or 'kept'",
        "m/model.toml: properties.CPU_DENORMALS_OPTIMIZATION: can't be set here: set execution.denormals",
    ]


def test_each_axis_that_settings_have_is_in_the_table() -> None:
    named = {axis.setting for axis in QUANTITIES.values()} | CHOICES.keys()
    assert named - {""} == ExecutionSettings.model_fields.keys() - {"mode", "precision", "hang_timeout"}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_has_a_word_and_a_text_for_each_value(name: str) -> None:
    axis = CHOICES[name]
    assert set(axis.words.values()) == set(axis.texts)
    assert [axis.words[axis.word(value)] for value in axis.texts] == list(axis.texts)
    assert axis.word(None) == "auto"
    if name in DEVICE_CHOICES:
        assert [axis.value_read(theirs) for theirs in axis.written.values()] == list(axis.written)
        assert set(axis.written) == set(axis.texts)
        assert axis.value_read("unknown") is None


def test_device_choices_stand_between_batch_and_path() -> None:
    assert [*AXES] == [*QUANTITIES, *DEVICE_CHOICES, "path"]
