"""OpenVINO is imported without its telemetry."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import inferd

IMPORT = """
import os, sys, threading
from inferd.engine.runtime import ov, version
assert ov.Core().available_devices
print(version(), [t.name for t in threading.enumerate()], "openvino_telemetry.main" in sys.modules, sep="|")
"""


def imported(**environment: str) -> list[str]:
    """What a fresh process says after the import: version, names of its threads, telemetry loaded."""
    path = str(Path(inferd.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", IMPORT],
        env={"PYTHONPATH": path, "PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split("|")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def report(home: Path) -> list[str]:
    return imported(HOME=str(home))


def test_the_version_is_openvinos(report: list[str]) -> None:
    assert report[0].split(".")[0].isdecimal()
    assert int(report[0].split(".")[0]) >= 2026


def test_no_thread_is_started(report: list[str]) -> None:
    assert report[1] == "['MainThread']"


def test_the_telemetry_package_is_not_loaded(report: list[str]) -> None:
    assert report[2] == "False"


def test_nothing_is_written_to_the_home_folder(report: list[str], home: Path) -> None:
    assert report
    assert list(home.iterdir()) == []


def test_a_process_without_home_can_import() -> None:
    assert imported()[1] == "['MainThread']"


_TWO_LOOKS = """
import sys, threading
from inferd.engine.runtime import ov
import numpy as np
sys.setswitchinterval(1e-6)
tensors = [ov.Tensor(np.zeros(4, np.float32)) for _ in range(2)]
barrier = threading.Barrier(2)
threads = [threading.Thread(target=lambda t=t: (barrier.wait(), t.data)) for t in tensors]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_the_first_look_at_a_tensor_may_come_from_two_threads() -> None:
    # Trap 26. A process of its own each time: only the first look ever is in danger.
    for _ in range(3):
        subprocess.run([sys.executable, "-c", _TWO_LOOKS], check=True, timeout=120)
