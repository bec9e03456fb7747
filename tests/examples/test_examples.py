"""Each program of examples/ runs against a real daemon that serves the demo models, and prints what it should."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.daemon import Daemon

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def server(demo_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(demo_repository, "--cache-dir", str(tmp_path_factory.mktemp("cache"))) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


def _run(
    command: list[str], folder: Path = ROOT, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def run(*command: str | Path, folder: Path = ROOT, **environment: str) -> str:
    """What the program prints; it has to succeed."""
    # Only what a reader would have: not this project's own modules.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = _run([*map(str, command)], folder, inherited | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_sync_client_prints_the_signature_and_the_label(server: Daemon) -> None:
    printed = run(sys.executable, EXAMPLES / "sync_client.py", server.grpc)
    assert "inputs:  [('bytes', 'INT32', [-1, 2048])]" in printed
    assert re.search(r"^shell, with a score of 0\.9\d+$", printed, re.MULTILINE), printed


def test_the_aio_client_has_all_its_requests_answered(server: Daemon) -> None:
    assert run(sys.executable, EXAMPLES / "aio_client.py", server.grpc) == "{'OK': 32}\n"


def test_the_audio_client_hears_the_voice_and_not_the_silence(server: Daemon) -> None:
    printed = run(sys.executable, EXAMPLES / "streaming_audio.py", server.grpc)
    heard = [int(frames) for frames in re.findall(r"speech in (\d+) of 31 frames", printed)]
    assert (heard[0], heard[1] > 10, heard[2]) == (0, True, 0), printed
    assert "93 frames answered, in one sequence" in printed


@pytest.mark.parametrize("program", ["sync_client.py", "streaming_audio.py"])
def test_a_client_without_a_server_says_so_in_one_line(program: str) -> None:
    command = [sys.executable, str(EXAMPLES / program), "127.0.0.1:1"]
    done = _run(command)
    assert done.returncode == 1
    assert done.stderr.startswith("UNAVAILABLE: ")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of examples/node with its packages; skips where Node or they can't be had."""
    if absent := [program for program in ("node", "npm") if shutil.which(program) is None]:
        pytest.skip(f"not installed: {', '.join(absent)}")
    folder = tmp_path_factory.mktemp("node") / "client"
    shutil.copytree(EXAMPLES / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = _run(install, folder)
    if done.returncode != 0:
        pytest.skip(f"npm can't get the packages: {done.stderr.strip().splitlines()[-1]}")
    return folder


def test_the_node_client_prints_the_label(server: Daemon, node_client: Path) -> None:
    printed = run("node", "client.js", server.grpc, folder=node_client, ROOT=str(ROOT))
    assert re.fullmatch(r"python, with a score of 0\.9\d+\n", printed)
