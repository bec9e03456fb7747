"""Other projects' clients, run in the environment that .ci/setup made for them.

They need a process of their own: two stubs of the proto package `inference` can't live in one.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

_ENVIRONMENT = ROOT / ".setup" / "clients"


def run(script: str, *arguments: str, timeout: float = 120.0) -> Any:
    """What the Python ``script`` prints, as JSON; fails with its stderr when it fails."""
    done = _run([str(_program("python")), "-c", script, *arguments], timeout)
    assert done.returncode == 0, f"the client ended with {done.returncode}\n{done.stderr}"
    return json.loads(done.stdout)


def perf_analyzer(*arguments: str, timeout: float = 120.0) -> "subprocess.CompletedProcess[str]":
    """perf_analyzer's run; skips the test where a library that it is linked to is missing."""
    command = str(_program("perf_analyzer"))
    if (done := _run([command, "--version"], timeout)).returncode != 0:
        pytest.skip(f"perf_analyzer does not run here: {done.stderr.strip()}; apt-get install libb64-0d")
    return _run([command, *arguments], timeout)


def _run(command: list[str], timeout: float) -> "subprocess.CompletedProcess[str]":
    # grpc would ask a proxy of the environment for a loopback address, and an inherited
    # PYTHONPATH would bring the project's own packages in.
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy") and k != "PYTHONPATH"}
    libraries = next(_ENVIRONMENT.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib"), None)
    environment["LD_LIBRARY_PATH"] = f"{libraries}:{environment.get('LD_LIBRARY_PATH', '')}"
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout, env=environment)


def _program(name: str) -> Path:
    program = _ENVIRONMENT / "bin" / name
    if not program.exists():
        pytest.fail(f"{program.relative_to(ROOT)} is missing: `make clients` makes it, `make test` before all else")
    return program
