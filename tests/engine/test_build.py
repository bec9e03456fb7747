"""Builds in a child process: real ones fill the cache for the next load, and broken ones harm nobody."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inferd.config.model import ModelConfig, parse
from inferd.engine import build
from inferd.engine.build import BuildResult, build_in_child
from inferd.engine.cache import BlobCache
from inferd.engine.runtime import ov
from inferd.engine.source import ModelSource
from tests.engine import models

GIGABYTE = 1 << 30

EVERYTHING = """
devices = ["CPU"]
[versions]
policy = "listed"
listed = [3, 1]
[objective]
latency_slo = 0.05
[execution]
mode = "performance"
streams = 2
pinning = "off"
path = "sync"
[batching]
max_size = 8
preferred_sizes = [2, 4]
[queue]
default_timeout = 1
[shapes]
x = ["1..8", "?", 4, "2..", -1]
[preprocessing.x]
mean = [123.7, 116, 103.5]
[sequences.state.s]
output = "t"
[warmup.shapes]
x = [1, 3, 4, 2, 2]
[properties]
PERF_COUNT = true
KV_CACHE_PRECISION = "u8"
KEY_CACHE_GROUP_SIZE = 32
CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE = 0.8
"""


def cache(folder: Path) -> BlobCache:
    return BlobCache(folder / "cache", GIGABYTE)


def source(folder: Path, toml: str = "", network: "ov.Model | None" = None) -> ModelSource:
    return models.source(models.save(network or models.scaled(2, [1, 4]), folder / "model"), toml)


def blobs(folder: Path) -> list[Path]:
    return sorted((folder / "cache").glob("*.blob"))


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the child run the given text instead of building."""

    def instead(text: str) -> None:
        script = tmp_path / "interpreter"
        script.write_text(f"#!{sys.executable}\nimport os, sys, time, json\njob = json.load(sys.stdin)\n{text}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    return instead


# -- what a build leaves behind ------------------------------------------------------


@pytest.mark.parametrize(
    "toml",
    [
        "",
        "[batching]\nmax_size = 8",
        '[shapes]\nx = ["1..3", "?"]',
        '[execution]\nmode = "performance"\nstreams = 2\nthreads = 1\npinning = "off"',
        "[objective]\nlatency_slo = 0.05\n[properties]\nPERF_COUNT = true",
    ],
)
def test_what_a_child_has_built_is_imported_by_the_next_load(toml: str, tmp_path: Path) -> None:
    made = source(tmp_path, toml)
    result = build_in_child(made, cache(tmp_path), 2, timeout=120)
    assert (result.ok, result.problem) == (True, "")
    assert result.seconds > 0
    assert len(blobs(tmp_path)) == 1
    loaded = models.engine(tmp_path / "cache").load(made)
    assert loaded.pools[0].from_cache
    loaded.close()


def test_a_second_build_finds_the_first_one_s_work(tmp_path: Path) -> None:
    made = source(tmp_path)
    seen = []
    for _ in range(2):
        assert build_in_child(made, cache(tmp_path), 2, timeout=120).ok
        seen.append([(blob.name, blob.stat().st_ino) for blob in blobs(tmp_path)])
    assert seen[0] == seen[1]


def test_devices_whose_compiled_models_are_not_kept_are_left_out(tmp_path: Path) -> None:
    assert build_in_child(source(tmp_path, 'devices = ["AUTO:CPU"]'), cache(tmp_path), 2, timeout=120).ok
    assert blobs(tmp_path) == []


def test_every_setting_reaches_the_child_as_it_is() -> None:
    config = parse(EVERYTHING, "m/model.toml")
    given = ModelSource("m", 3, Path("m/3/model.xml"), (Path("m/3/model.xml"), Path("m/3/model.bin")), config)
    job = json.loads(json.dumps(build._as_json(given, BlobCache(Path("cache"), 5), 2)))
    assert ModelConfig.model_validate(job["config"]) == config
    assert (job["name"], job["version"], job["path"], job["files"]) == (
        "m",
        3,
        "m/3/model.xml",
        ["m/3/model.xml", "m/3/model.bin"],
    )
    assert (job["cache_directory"], job["cache_max_bytes"], job["cpu_threads"]) == ("cache", 5, 2)


# -- what can go wrong ---------------------------------------------------------------


def test_a_model_that_can_not_be_read_is_told_in_its_own_sentence(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"no model at all")
    result = build_in_child(models.source(file), cache(tmp_path), 2, timeout=120)
    assert not result.ok
    assert result.problem.startswith("model 'small' version 1 failed to load: ")


def test_a_setting_that_does_not_fit_and_an_absent_device_are_told_alike(tmp_path: Path) -> None:
    for toml, said in (
        ("[shapes]\nz = [4]", "small/model.toml: shapes.z: no such input; allowed: x"),
        ('devices = ["GPU.7"]', "device 'GPU.7' needs GPU.7, which is absent"),
    ):
        result = build_in_child(source(tmp_path, toml), cache(tmp_path), 2, timeout=120)
        assert not result.ok
        assert said in result.problem


def test_a_child_that_hangs_is_killed(child: Any, tmp_path: Path) -> None:
    child(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")
    result = build_in_child(source(tmp_path), cache(tmp_path), 2, timeout=5)
    assert (result.ok, result.problem) == (False, "not built within 5 s")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("sys.exit(7)", "the build ended with exit code 7"),
        ("os.kill(os.getpid(), 9)", "the build ended by signal 9"),
        ("raise MemoryError('all gone')", "the build ended with exit code 1: MemoryError: all gone"),
        ("print('no answer')", "the build ended with exit code 0"),
        ("print('{\"ok\": true}')", "the build ended with exit code 0"),
        ("print('[]')", "the build ended with exit code 0"),
        ("sys.stderr.buffer.write(b'\\xff\\x1b[31m'); sys.exit(1)", "the build ended with exit code 1: \ufffd [31m"),
    ],
)
def test_a_child_that_ends_without_an_answer_is_told_with_its_last_words(
    text: str, problem: str, child: Any, tmp_path: Path
) -> None:
    child(text)
    result = build_in_child(source(tmp_path), cache(tmp_path), 2, timeout=120)
    assert (result.ok, result.problem) == (False, problem)


def test_a_child_that_can_not_be_started_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    result = build_in_child(source(tmp_path), cache(tmp_path), 2, timeout=120)
    assert (result.ok, result.problem) == (False, "the build could not be started: No such file or directory")


# -- the child's side ----------------------------------------------------------------


def asked(job: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "inferd.engine.build"]
    return subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False)


def test_the_answer_is_one_line_and_the_exit_code_says_the_same(tmp_path: Path) -> None:
    made = source(tmp_path)
    good = build._as_json(made, cache(tmp_path), 2)
    for job, code in ((good, 0), (good | {"path": str(tmp_path / "gone.xml")}, 1)):
        ended = asked(job)
        (line,) = ended.stdout.splitlines()
        answer = BuildResult(**json.loads(line))
        assert (ended.returncode, answer.ok) == (code, code == 0)
        assert bool(answer.problem) == bool(code)


def test_warnings_do_not_get_between_the_answer_and_who_reads_it(tmp_path: Path) -> None:
    # The folder of the cache is a file: nothing can be kept, which the log says.
    (tmp_path / "cache").write_text("")
    ended = asked(build._as_json(source(tmp_path), cache(tmp_path), 2))
    assert json.loads(ended.stdout)["ok"]
    assert "cache can't be locked" in ended.stderr


def test_the_child_lowers_its_priority_before_it_reads_openvino_in() -> None:
    told = (
        "import os, sys\n"
        "from inferd.engine import build\n"
        "build._build = lambda job: build.BuildResult(True, f'{os.nice(0)} {\"openvino\" in sys.modules}', 0.0)\n"
        "build.main()"
    )
    ended = subprocess.run([sys.executable, "-c", told], input="{}", capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout)["problem"] == f"{min(19, os.nice(0) + 10)} False"
