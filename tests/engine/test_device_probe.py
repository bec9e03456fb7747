"""A child process finds out whether a fresh process could use a device."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from inferd.engine.device_probe import DeviceProbe
from inferd.engine.preflight import PreflightLimits

LIMITS = PreflightLimits(memory_bytes=1 << 30, seconds=60.0, cpu_threads=1)


@pytest.fixture
def probe() -> Iterator[DeviceProbe]:
    probe = DeviceProbe(LIMITS)
    yield probe
    probe.close()


def program(text: str, seconds: float = 60.0) -> DeviceProbe:
    """A child of another kind: it reads its job and then does what ``text`` says."""
    command = (sys.executable, "-c", f"import os, signal, sys, time; sys.stdin.buffer.read()\n{text}")
    return DeviceProbe(PreflightLimits(1 << 30, seconds, 1), command)


@pytest.mark.parametrize("device", ["CPU", "AUTO:CPU"])
def test_a_device_that_is_there_can_be_used_each_time_it_is_tried(device: str, probe: DeviceProbe) -> None:
    assert [probe.unusable(device) for _ in range(2)] == ["", ""]


def test_a_device_that_is_not_there_can_not(probe: DeviceProbe) -> None:
    assert "GPU.7, which is absent" in probe.unusable("GPU.7")


@pytest.mark.parametrize(
    ("child", "why"),
    [
        (program("os.abort()"), "crashed (SIGABRT)"),
        (program("time.sleep(600)", seconds=0.3), "it took longer than 0.3 s"),
        (program("sys.exit(3)"), "ended with status 3 and no result"),
        (program('print(\'{"verdict": "memory"}\')'), "it needs more memory"),
    ],
    ids=["crashes", "hangs", "fails", "memory"],
)
def test_a_device_that_does_its_process_harm_can_not_be_used(child: DeviceProbe, why: str) -> None:
    assert why in child.unusable("CPU")


def test_whoever_closes_it_ends_the_child_and_every_later_one() -> None:
    child = program("time.sleep(600)")
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(child.unusable, "CPU")
        while not child._preflight._running:
            assert not waiting.done()
        child.close()
        assert waiting.result() == "loading stopped: the server is shutting down"
    assert child.unusable("CPU") == "loading stopped: the server is shutting down"
