"""A child process tries each model file first: whatever a file does to its reader is one sentence here."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from inferd.engine.cache import BlobCache
from inferd.engine.model import Engine
from inferd.engine.preflight import COMMAND, Preflight, PreflightLimits, memory_allowed
from inferd.engine.runtime import ov
from inferd.engine.source import ModelSource
from inferd.errors import ConfigurationError, ContentChanged, LoadFailed, LoadInterrupted
from tests.engine import hostile_models, models
from tests.engine.models import numbers, tensor

GIBIBYTE = 1 << 30
TRIED = "model 'small' version 1 failed to load: "


def preflight(
    cache: BlobCache, memory: int = GIBIBYTE, seconds: float = 60.0, command: Sequence[str] = COMMAND
) -> Preflight:
    return Preflight(cache, PreflightLimits(memory, seconds, cpu_threads=2), command)


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    return BlobCache(tmp_path / "cache", GIBIBYTE)


def engine(cache: BlobCache, first: Preflight | None = None) -> Engine:
    return Engine(2, cache, first or preflight(cache))


def refusal(engine: Engine, source: ModelSource) -> str:
    with pytest.raises(LoadFailed) as refused:
        engine.load(source)
    return str(refused.value).removeprefix(TRIED)


def program(text: str) -> Sequence[str]:
    """A child of another kind: it reads its job and then does what ``text`` says."""
    return (sys.executable, "-c", f"import os, signal, sys, time; sys.stdin.buffer.read()\n{text}")


# -- what passes --------------------------------------------------------------------


def test_a_model_that_passes_is_imported_from_the_blob_its_child_left(tmp_path: Path, cache: BlobCache) -> None:
    loaded = engine(cache).load(models.source(models.save(models.scaled(2), tmp_path)))
    [entry] = loaded.pools
    assert entry.from_cache
    entry.pool.start(0, [[tensor([1, 2, 3, 4])]])
    while not entry.pool.sweep():
        pass
    assert numbers(entry.pool.read(0, (0,))[0]).tolist() == [2, 4, 6, 8]
    loaded.close()


def test_what_has_passed_is_not_tried_again_by_this_process_or_the_next(tmp_path: Path, cache: BlobCache) -> None:
    source = models.source(models.save(models.scaled(2), tmp_path))
    first = engine(cache)
    first.load(source).close()
    with capture_logs() as logs:
        first.load(source).close()
        engine(cache).load(source).close()
    assert [entry for entry in logs if entry["event"].startswith("preflight")] == []


@pytest.mark.parametrize("toml", ["[shapes]\nx = [8]", "[batching]\nmax_size = 4", '[execution]\nmode = "performance"'])
def test_other_settings_that_change_what_is_compiled_are_tried(toml: str, tmp_path: Path, cache: BlobCache) -> None:
    file = models.save(models.scaled(2, (-1,)), tmp_path)
    loads = engine(cache)
    loads.load(models.source(file, "[shapes]\nx = [4]")).close()
    with capture_logs() as logs:
        loads.load(models.source(file, toml)).close()
    assert [entry["event"] for entry in logs] == ["preflight passed"]


def test_changed_content_is_tried(tmp_path: Path, cache: BlobCache) -> None:
    loads = engine(cache)
    loads.load(models.source(models.save(models.scaled(2), tmp_path))).close()
    with capture_logs() as logs:
        loads.load(models.source(models.save(models.scaled(3), tmp_path))).close()
    assert [entry["event"] for entry in logs] == ["preflight passed"]


@pytest.mark.parametrize("device", ["AUTO:CPU", "HETERO:CPU", "MULTI:CPU", "BATCH:CPU(2)"])
def test_devices_whose_compiled_models_are_not_kept_are_tried_once_too(
    device: str, tmp_path: Path, cache: BlobCache
) -> None:
    source = models.source(models.save(models.scaled(2, (1, 4)), tmp_path), f'devices = ["{device}"]')
    with capture_logs() as logs:
        engine(cache).load(source).close()
        engine(cache).load(source).close()
    assert [entry["event"] for entry in logs if entry["event"].startswith("preflight")] == ["preflight passed"]


def test_without_a_cache_each_process_tries_for_itself(tmp_path: Path) -> None:
    source = models.source(models.save(models.scaled(2), tmp_path))
    loads = engine(BlobCache(tmp_path / "cache", 0))
    with capture_logs() as logs:
        loads.load(source).close()
        loads.load(source).close()
        engine(BlobCache(tmp_path / "cache", 0)).load(source).close()
    assert [entry["event"] for entry in logs] == ["preflight passed", "preflight passed"]
    assert not (tmp_path / "cache").exists()


# -- files that do harm -------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        (hostile_models.divides_by_zero, "the preflight process crashed (SIGFPE)"),
        (hostile_models.reads_out_of_bounds, "the preflight process crashed (SIGSEGV)"),
        (hostile_models.fills_memory, f"it needs more memory than the {GIBIBYTE} bytes of preflight_memory_bytes"),
        (
            lambda: hostile_models.huge_input(GIBIBYTE // 4),
            f"it needs more memory than the {GIBIBYTE} bytes of preflight_memory_bytes",
        ),
    ],
    ids=["divides by zero", "reads out of bounds", "fills memory", "huge input"],
)
def test_a_file_that_ends_or_fills_its_reader_is_refused_each_time(
    network: Callable[[], ov.Model], problem: str, tmp_path: Path, cache: BlobCache
) -> None:
    source = models.source(models.save(network(), tmp_path))
    assert refusal(engine(cache), source) == problem
    # Also where the first child left a compiled blob behind before it ended.
    assert refusal(engine(cache), source) == problem


def test_a_file_that_takes_too_long_is_given_up(tmp_path: Path, cache: BlobCache) -> None:
    source = models.source(models.save(hostile_models.deep(20_000), tmp_path))
    assert refusal(engine(cache, preflight(cache, seconds=2)), source) == (
        "it took longer than 2 s (preflight_timeout)"
    )


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.xml", b""),
        ("model.xml", b"<net/>"),
        ("model.xml", b"\0" * 4096),
        ("model.xml", b"<net " * 100_000),
        ("model.onnx", b"\x0a\xff\xff\xff\xff\x0f" + b"\0" * 64),
        ("model.onnx", bytes(range(256)) * 16),
        ("model.pb", b"\x0a\xff\xff\xff\x7f"),
        ("model.tflite", b"\xff" * 64),
        ("model.tflite", b"\x1c\0\0\0TFL3" + b"\xff" * 200),
        ("model.pdmodel", b"\xff" * 200),
    ],
)
def test_corrupt_files_are_refused_without_naming_the_host(
    file: str, content: bytes, tmp_path: Path, cache: BlobCache
) -> None:
    (tmp_path / file).write_bytes(content)
    assert str(tmp_path) not in refusal(engine(cache), models.source(tmp_path / file))


@pytest.mark.parametrize("kept", [0, 1, 100, 1000])
def test_truncated_files_are_refused(kept: int, tmp_path: Path, cache: BlobCache) -> None:
    file = models.save(models.slow(2), tmp_path)
    for part in (file, file.with_suffix(".bin")):
        whole = part.read_bytes()
        part.write_bytes(whole[:kept])
        assert refusal(engine(cache), models.source(file))
        part.write_bytes(whole)


def test_settings_that_do_not_fit_the_model_are_named_as_without_a_child(tmp_path: Path, cache: BlobCache) -> None:
    source = models.source(models.save(models.scaled(2), tmp_path), "[shapes]\nz = [4]")
    said = []
    for loads in (engine(cache), Engine(2, cache)):
        with pytest.raises(ConfigurationError) as refused:
            loads.load(source)
        said.append(str(refused.value))
    assert said[0] == said[1] == "small/model.toml: shapes.z: no such input; allowed: x"


# -- children that fail otherwise ---------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed (SIGKILL), possibly because memory"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "was terminated (SIGTERM)"),
        ("os.kill(os.getpid(), signal.SIGBUS)", "crashed (SIGBUS)"),
        ("os.kill(os.getpid(), signal.SIGRTMIN)", f"crashed ({signal.SIGRTMIN.name})"),
        ("os.abort()", "crashed (SIGABRT)"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", "used more CPU time than preflight_timeout allows"),
        ("sys.exit(7)", "ended with status 7 and no result"),
        ("print('passed')", "ended with status 0 and no result"),
        ("print('[1]')", "ended with status 0 and no result"),
        ("print('{\"verdict\": [1]}')", "ended with status 0 and no result"),
        ('print(\'{"verdict": "passed"}\'); sys.stdout.flush(); os.abort()', "crashed (SIGABRT)"),
        ("sys.stdout.write('x' * (64 << 20))", "ended with status 0 and no result"),
        ("sys.stderr.write('x' * (64 << 20)); sys.exit(1)", "ended with status 1 and no result"),
    ],
)
def test_however_the_child_ends_the_sentence_says_so(text: str, problem: str, tmp_path: Path, cache: BlobCache) -> None:
    source = models.source(models.save(models.scaled(2), tmp_path))
    said = refusal(engine(cache, preflight(cache, command=program(text))), source)
    assert said.startswith(f"the preflight process {problem}")


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        *((f"os.kill(os.getpid(), signal.{name})", True) for name in ("SIGKILL", "SIGTERM")),
        # Under nohup every child ignores it.
        ("signal.signal(signal.SIGHUP, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGHUP)", True),
        *((f"os.kill(os.getpid(), signal.{name})", False) for name in ("SIGSEGV", "SIGBUS", "SIGXCPU")),
        ("sys.exit(1)", False),
    ],
)
def test_what_ends_a_child_from_outside_says_nothing_of_the_model(
    text: str, passes: bool, tmp_path: Path, cache: BlobCache
) -> None:
    source = models.source(models.save(models.scaled(2), tmp_path))
    with pytest.raises(LoadFailed) as refused:
        engine(cache, preflight(cache, command=program(text))).load(source)
    assert isinstance(refused.value, LoadInterrupted) == passes


def test_a_child_that_computes_for_too_long_ends_by_its_own_limit() -> None:
    """And not as if it had been killed from outside, which would be tried again and again."""
    spin = "from inferd.engine import preflight_process as p\np._limit(p.resource.RLIMIT_CPU, 1, 6)\nwhile 1: 0"
    assert subprocess.run([sys.executable, "-c", spin], check=False).returncode == -signal.SIGXCPU


# -- files that change meanwhile ----------------------------------------------------

# A child during one step of which "next" is in the place of the model's weights, and stays there or not.
SWAPPING = """
import os, sys
from pathlib import Path
from inferd.engine import model, preflight_process
folder, step, back = Path(sys.argv[1]), sys.argv[2], len(sys.argv) > 3
taken = getattr(model.ov.Core, step)
def swapped(self, *given, **more):
    os.rename(folder / "model.bin", folder / "kept")
    os.rename(folder / "next", folder / "model.bin")
    found = taken(self, *given, **more)
    if back:
        os.rename(folder / "model.bin", folder / "next")
        os.rename(folder / "kept", folder / "model.bin")
    return found
setattr(model.ov.Core, step, swapped)
preflight_process.main()
"""


def _scale(folder: Path, factor: float, name: str) -> Path:
    """A model whose only number is among its weights, which are in the file ``name``."""
    x = models.parameter((4,))
    weights = models.op.constant(np.full(4, factor, np.float32))
    file = models.save(models.model({"y": models.op.multiply(x, weights)}, [x]), folder)
    file.with_suffix(".bin").rename(folder / name)
    return file


@pytest.mark.parametrize("step", ["read_model", "compile_model"])
@pytest.mark.parametrize("back", [False, True], ids=["replaced", "replaced and put back"])
def test_what_was_read_while_it_changed_is_kept_under_no_key(
    step: str, back: bool, tmp_path: Path, cache: BlobCache
) -> None:
    folder = tmp_path / "model"
    _scale(folder, 3, "next")
    source = models.source(_scale(folder, 2, "model.bin"))
    command = (sys.executable, "-c", SWAPPING, str(folder), step, *(["back"] if back else []))
    with pytest.raises(ContentChanged):
        engine(cache, preflight(cache, command=command)).load(source)
    assert [*tmp_path.glob("cache/*.blob"), *tmp_path.glob("cache/*.passed")] == []
    loaded = engine(cache).load(source)
    [entry] = loaded.pools
    entry.pool.start(0, [[tensor([1, 1, 1, 1])]])
    while not entry.pool.sweep():
        pass
    assert numbers(entry.pool.read(0, (0,))[0]).tolist() == [2 if back else 3] * 4
    loaded.close()


def test_a_source_that_was_settled_is_loaded_as_it_was_or_not_at_all(tmp_path: Path, cache: BlobCache) -> None:
    _scale(tmp_path, 2, "same")
    _scale(tmp_path, 3, "next")
    source = models.source(_scale(tmp_path, 2, "model.bin")).settled()
    (tmp_path / "same").replace(tmp_path / "model.bin")
    engine(cache).load(source).close()
    (tmp_path / "next").replace(tmp_path / "model.bin")
    with pytest.raises(ContentChanged):
        engine(cache).load(source)


@pytest.mark.parametrize("text", ["time.sleep(600)", "os.close(1); os.close(2); time.sleep(600)"])
def test_a_child_that_hangs_is_given_up(text: str, tmp_path: Path, cache: BlobCache) -> None:
    source = models.source(models.save(models.scaled(2), tmp_path))
    assert refusal(engine(cache, preflight(cache, seconds=0.5, command=program(text))), source) == (
        "it took longer than 0.5 s (preflight_timeout)"
    )
    assert _children() == []


def test_a_child_that_cannot_be_started_is_a_failed_load(tmp_path: Path, cache: BlobCache) -> None:
    source = models.source(models.save(models.scaled(2), tmp_path))
    assert refusal(engine(cache, preflight(cache, command=["/nowhere"])), source) == (
        "the preflight process could not be started: No such file or directory"
    )


def test_closing_ends_the_child_and_refuses_what_comes_later(tmp_path: Path, cache: BlobCache) -> None:
    source = models.source(models.save(models.scaled(2), tmp_path))
    loads = engine(cache, preflight(cache, command=program("time.sleep(600)")))
    with ThreadPoolExecutor() as threads:
        loading = threads.submit(refusal, loads, source)
        while not _children():
            pass
        loads.close()
        loads.close()
        assert loading.result() == "loading stopped: the server is shutting down"
    assert refusal(loads, source) == "loading stopped: the server is shutting down"
    assert _children() == []


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    """A killed daemon leaves no child behind, even one that is busy for minutes."""
    file = models.save(models.slow(200), tmp_path)
    script = (
        "import sys; from pathlib import Path; from tests.engine import models, test_preflight as t;"
        "cache = t.BlobCache(Path(sys.argv[2]), 1 << 30);"
        "t.engine(cache).load(models.source(Path(sys.argv[1]), '[execution]\\ninfer_requests = 4000'))"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(file), str(tmp_path / "cache")])
    try:
        while not (grandchildren := [p for p in _children(parent.pid) if _confined(p)]):
            assert parent.poll() is None
    finally:
        parent.kill()
        parent.wait()
    with ThreadPoolExecutor() as threads:
        threads.submit(_gone, grandchildren[0]).result(timeout=60)


# -- the limits it sets on itself ---------------------------------------------------


def test_the_child_is_confined_and_gets_none_of_what_is_the_daemons_alone(
    tmp_path: Path, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("INFERD_TOKENS_FILE", "NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY"):
        monkeypatch.setenv(name, "secret")
    seen = tmp_path / "seen"
    look = f"""
import json, os, pickle, resource, sys
from inferd.engine import preflight_process
job = pickle.load(sys.stdin.buffer)
preflight_process.confine(job)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
names = ("RLIMIT_DATA", "RLIMIT_CPU", "RLIMIT_CORE", "RLIMIT_NOFILE")
limits = {{n: resource.getrlimit(getattr(resource, n)) for n in names}}
facts = dict(limits=limits, privileges=status["NoNewPrivs"].strip(), nice=os.nice(0), environment=dict(os.environ),
             oom=open("/proc/self/oom_score_adj").read().strip())
open({str(seen)!r}, "w").write(json.dumps(facts))
print(json.dumps({{"verdict": "passed"}}))
"""
    source = models.source(models.save(models.scaled(2), tmp_path))
    engine(cache, preflight(cache, seconds=30, command=(sys.executable, "-c", look))).load(source).close()
    facts: dict[str, Any] = json.loads(seen.read_text())
    assert facts["limits"] == {
        "RLIMIT_DATA": [GIBIBYTE, GIBIBYTE],
        "RLIMIT_CPU": [90, 95],
        "RLIMIT_CORE": [0, 0],
        "RLIMIT_NOFILE": [256, 256],
    }
    assert (facts["privileges"], facts["oom"]) == ("1", "1000")
    assert facts["nice"] == min(19, os.nice(0) + 10)
    assert [v for v in facts["environment"].values() if v == "secret"] == []
    assert "PATH" in facts["environment"]


def test_a_child_gets_half_of_what_the_daemon_may_use_unless_a_setting_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/\n")
    (tmp_path / "memory.max").write_text(f"{GIBIBYTE}\n")
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_allowed(12345) == 12345
    assert memory_allowed(0, tmp_path, tmp_path) == GIBIBYTE // 2
    assert memory_allowed(0, tmp_path / "absent", tmp_path) == machine // 2


def _children(parent: int | None = None) -> list[int]:
    """Processes below ``parent``, or this one, that have not ended; what multiprocessing keeps for itself left out."""
    found = []
    for task in Path(f"/proc/{parent or os.getpid()}/task").iterdir():
        with suppress(OSError):  # a thread that has ended meanwhile
            found += [int(p) for p in (task / "children").read_text().split()]
    return [process for process in found if "resource_tracker" not in _command(process)]


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


def _confined(process: int) -> bool:
    try:
        return "NoNewPrivs:\t1" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def _gone(process: int) -> None:
    done = threading.Event()
    while not done.is_set():
        try:
            if ") Z " in Path(f"/proc/{process}/stat").read_text():
                done.set()
        except OSError:
            done.set()
