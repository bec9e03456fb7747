"""inferd and tritonclient in one environment: the client's requirements leave inferd able to serve.

They install in the order of the README: inferd first, then the client, whose own ranges may move what inferd needs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inferd.tensors import DType
from tests import models
from tests.conftest import ROOT
from tests.system.daemon import Daemon

pytestmark = pytest.mark.system

CLIENT = "tritonclient[grpc]==2.73.0"
CALL = """
import json, sys
import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient(sys.argv[1])
x = triton.InferInput("x", [3], "INT64")
x.set_data_from_numpy(np.array([1, 2, 3], np.int64))
print(json.dumps(client.infer("echo", [x]).as_numpy("x").tolist()))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds both."""
    programs = tmp_path_factory.mktemp("environment") / "bin"
    run(sys.executable, "-m", "venv", str(programs.parent))
    install = (str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*install, "--require-hashes", "--requirement", str(ROOT / ".ci" / "pins" / "serve.txt"))
    run(*install, "--no-deps", "--no-build-isolation", str(ROOT))
    run(*install, CLIENT)
    return programs


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    models.save(models.identity(DType.INT64, [-1]), tmp_path, "echo")
    return tmp_path


def run(*command: str) -> str:
    """What ``command`` prints; fails with its stderr when it fails."""
    # An inherited PYTHONPATH would bring this checkout's code in, and gRPC would ask a proxy for a loopback address.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("INFERD_")}
    if "pip" not in command:
        kept = {k: v for k, v in kept.items() if not k.lower().endswith("_proxy")}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=540, env=kept)
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_no_requirement_is_broken(environment: Path) -> None:
    assert run(str(environment / "python"), "-m", "pip", "check") == "No broken requirements found.\n"


def test_check_passes_and_the_client_infers(environment: Path, repository: Path, tmp_path: Path) -> None:
    flags = ("--model-repository", str(repository), "--cache-dir", str(tmp_path / "cache"))
    assert run(str(environment / "inferd"), "check", *flags).endswith("1 model, 0 broken\n")
    with Daemon(repository, python=environment / "python", environment={"PYTHONPATH": ""}) as daemon:
        assert json.loads(run(str(environment / "python"), "-c", CALL, daemon.grpc)) == [1, 2, 3]
    assert daemon.stop() == 0, daemon.log()
