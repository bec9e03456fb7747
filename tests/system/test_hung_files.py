"""Files that block or have no end: a daemon refuses them by name, serves on, says what is stale, and ends in time."""

import http.client
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from inferd.exit_deadline import LAST_SECONDS
from inferd.rpc.client import InferenceClient
from inferd.tensors import DType
from tests import models
from tests.odd_files import listening_socket, sparse
from tests.system.daemon import Daemon
from tests.system.hung_folder import hung

pytestmark = pytest.mark.system

PATIENCE = 120.0
DRAIN = 1.0
SECRET = "x" * 40


def serves(daemon: Daemon, model: str = "echo") -> bool:
    with InferenceClient(daemon.grpc) as client:
        answer = client.infer(model, {"x": np.array([1, 2], np.int64)})
    return all(np.array_equal(value, [1, 2]) for value in answer.values()) and daemon.get("/healthz")[0] == 200


def until(holds: Callable[[], bool]) -> bool:
    """Ask until it ``holds``, by a call to the daemon each time; False where it does not in time."""
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            return False
    return True


def problems(daemon: Daemon) -> dict[str, str]:
    """Why models are not served, by name; the last word on each."""
    return {event["model"]: event["problem"] for event in daemon.events("model load failed")}


def current(daemon: Daemon) -> str:
    """Whether the metrics show the tokens as current."""
    connection = http.client.HTTPConnection(daemon.metrics, timeout=60)
    with closing(connection):
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {SECRET}"})
        body = connection.getresponse().read().decode()
    (line,) = (text for text in body.splitlines() if text.startswith('inferd_credentials_current{kind="tokens"}'))
    return line.rpartition(" ")[2]


def end_in_time(daemon: Daemon) -> int:
    """The exit status after a SIGTERM, which has to come in time."""
    begun = time.monotonic()
    status = daemon.stop(timeout=DRAIN + LAST_SECONDS + 30)
    assert time.monotonic() - begun < DRAIN + LAST_SECONDS + 5
    return status


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    models.save(models.identity(DType.INT64, [-1]), folder, "echo")
    return folder


@pytest.fixture
def daemon(repository: Path, cache_dir: Path) -> Iterator[Daemon]:
    with Daemon(repository, "--cache-dir", str(cache_dir), "--drain-timeout", str(DRAIN)) as running:
        yield running


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (os.mkfifo, "is not a regular file"),
    "sock": (listening_socket, "is not a regular file"),
    "sparse": (sparse, "has 107374182400 bytes, more than 68719476736 (repository_max_model_bytes)"),
}


def test_files_that_block_or_have_no_end_are_named_and_stop_nothing(daemon: Daemon, repository: Path) -> None:
    for kind, (make, _) in KINDS.items():
        shutil.copytree(repository / "echo", repository / kind)
        make(repository / kind / "1" / "weights")
        shutil.copytree(repository / "echo", repository / f"{kind}-settings")
        make(repository / f"{kind}-settings" / "model.toml")
    shutil.copytree(repository / "echo", repository / "good")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("reloaded partially", PATIENCE)
    found = problems(daemon)
    for kind, (_, problem) in KINDS.items():
        assert found[kind] == f"{kind}/1/weights: {problem}"
        settings = "is larger than 65536 bytes" if kind == "sparse" else problem
        assert found[f"{kind}-settings"] == f"{kind}-settings/model.toml: {settings}"
    assert serves(daemon)
    assert serves(daemon, "good")
    assert end_in_time(daemon) == 0


def test_a_folder_that_hangs_is_named_and_stops_neither_service_nor_reloads(daemon: Daemon, repository: Path) -> None:
    shutil.copytree(repository / "echo", repository / "gone")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("reloaded", PATIENCE)
    with hung(repository / "gone"):
        shutil.copytree(repository / "echo", repository / "new")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("reloaded partially", PATIENCE)
        assert problems(daemon) == {"gone": "gone: can't be read: still waiting for gone"}
        assert serves(daemon)
        assert serves(daemon, "gone")
        assert serves(daemon, "new")
        # The next reload does not wait as long again, nor leave more threads waiting.
        shutil.copytree(repository / "echo", repository / "newer")
        daemon.process.send_signal(signal.SIGHUP)
        assert until(lambda: len(daemon.events("reloaded partially")) == 2 and serves(daemon))
        assert serves(daemon, "newer")
        assert end_in_time(daemon) == 0


def test_a_start_with_a_folder_that_hangs_serves_the_others(repository: Path, cache_dir: Path) -> None:
    (repository / "gone").mkdir()
    flags = ("--cache-dir", str(cache_dir), "--drain-timeout", str(DRAIN))
    with hung(repository / "gone"), Daemon(repository, *flags) as daemon:
        assert serves(daemon)
        assert problems(daemon) == {"gone": "gone: can't be read: still waiting for gone"}
        assert end_in_time(daemon) == 0


def test_sigterm_while_a_file_hangs_ends_the_daemon(daemon: Daemon, repository: Path) -> None:
    (repository / "gone").mkdir()
    with hung(repository / "gone"):
        daemon.process.send_signal(signal.SIGHUP)
        assert serves(daemon)
        assert end_in_time(daemon) in (0, 70)


def test_settings_and_caches_that_hang_stop_neither_service_nor_the_end(repository: Path, tmp_path: Path) -> None:
    etc, cache = tmp_path / "etc", tmp_path / "cache"
    for folder in (etc, cache):
        folder.mkdir()
    (etc / "inferd.toml").write_text('request_log = "off"\n')
    flags = ("--cache-dir", str(cache), "--config", str(etc / "inferd.toml"), "--drain-timeout", str(DRAIN))
    with Daemon(repository, *flags, "--profile-dir", str(cache)) as daemon, hung(etc), hung(cache):
        models.save(models.identity(DType.FP32, [-1]), repository, "other")
        daemon.process.send_signal(signal.SIGHUP)
        problem = daemon.wait_for("settings not reloaded", PATIENCE)["problem"]
        assert problem == f"{etc / 'inferd.toml'}: no answer for 15 s from inferd.toml"
        assert serves(daemon)
        daemon.wait_for("reloaded partially", PATIENCE)
        with InferenceClient(daemon.grpc) as client:
            assert client.infer("other", {"x": np.array([1.5], np.float32)})
        assert end_in_time(daemon) == 0


@pytest.mark.parametrize("kind", ["pipe", "hung"])
def test_tokens_that_can_not_be_read_again_stay_in_force_and_count_as_stale(
    repository: Path, cache_dir: Path, tmp_path: Path, kind: str
) -> None:
    etc = tmp_path / "etc"
    etc.mkdir()
    tokens, digest = etc / "tokens.toml", sha256(SECRET.encode()).hexdigest()
    text = f'[[token]]\nname = "a"\nsha256 = "{digest}"\nscopes = ["read"]\n'
    tokens.write_text(text)
    flags = ("--cache-dir", str(cache_dir), "--tokens-file", str(tokens), "--drain-timeout", str(DRAIN))
    with Daemon(repository, *flags) as daemon:
        if kind == "pipe":
            tokens.unlink()
            os.mkfifo(tokens)
            problem = daemon.wait_for("credentials not reloaded", PATIENCE)["problem"]
            assert problem == f"{tokens}: not a regular file"
            assert current(daemon) == "0.0"
            tokens.unlink()
        else:
            with hung(etc):
                problem = daemon.wait_for("credentials not reloaded", PATIENCE)["problem"]
                assert problem == f"no answer for 15 s from {tokens}"
                assert current(daemon) == "0.0"
        tokens.write_text(text + "# again\n")
        daemon.wait_for("credentials reloaded", PATIENCE)
        assert current(daemon) == "1.0"
        assert end_in_time(daemon) == 0
