"""A real daemon that loses its device for good: it says so, drains, and makes way for a process that can use it."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc import StatusCode

from inferd.cli import exit_status
from inferd.tensors import DType
from tests import models
from tests.system import losing_daemon
from tests.system.daemon import Daemon
from tests.system.test_faults import Status, answers, watch
from tests.system.test_watchdog import Supervisor, says
from tests.system.wire import OK, by_outcome, connect, counts, echo, method, outcome

pytestmark = pytest.mark.system


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    listening = Supervisor(tmp_path)
    yield listening
    listening.close()


def under(supervisor: Supervisor, folder: Path, cache: Path, *flags: str) -> Daemon:
    command = (sys.executable, losing_daemon.__file__, str(folder / "lost"))
    environment = {"NOTIFY_SOCKET": supervisor.path}
    return Daemon(folder / "models", "--cache-dir", str(cache), *flags, environment=environment, under=command)


async def lose(daemon: Daemon, device: Path) -> list[tuple[StatusCode, str]]:
    """Answers before and after ``device`` is lost, of requests that are in flight when it is, too."""
    async with connect(daemon.grpc) as channel:
        infer, health = method(channel, "ModelInfer"), watch(channel, "echo/1")
        assert (await health.read()).status == Status.SERVING
        ended = [await outcome(infer(echo([n]))) for n in range(5)]
        device.touch()  # noqa: ASYNC240 - an empty file
        ended += [await outcome(call) for call in [infer(echo([n])) for n in range(10)]]
        assert (await health.read()).status == Status.NOT_SERVING
    return ended


def test_a_daemon_makes_way_once_a_fresh_process_can_use_what_it_has_lost(
    tmp_path: Path, cache_dir: Path, supervisor: Supervisor
) -> None:
    models.save(models.identity(DType.INT64, [-1]), tmp_path / "models", "echo")
    with under(supervisor, tmp_path, cache_dir) as daemon:
        ended = asyncio.run(lose(daemon, tmp_path / "lost"))
        daemon.wait_for("stopped")
        assert daemon.process.wait(60) == exit_status.RESTART
        supervisor.hear(says("STOPPING=1"))
    assert [code for code, _ in ended] == [OK] * 5 + [StatusCode.UNAVAILABLE] * 10
    assert len(daemon.events("model reload started")) == 3
    assert daemon.events("device lost to this process only; restarting")
    # As a supervisor would.
    (tmp_path / "lost").unlink()
    with under(supervisor, tmp_path, cache_dir) as daemon:
        assert answers(daemon)
    assert daemon.stop() == 0, daemon.log()


def test_a_daemon_that_is_to_stay_stays_and_says_what_it_has_lost(
    tmp_path: Path, cache_dir: Path, supervisor: Supervisor
) -> None:
    models.save(models.identity(DType.INT64, [-1]), tmp_path / "models", "echo")
    with under(supervisor, tmp_path, cache_dir, "--restart-on-device-loss", "off") as daemon:
        ended = asyncio.run(lose(daemon, tmp_path / "lost"))
        assert [code for code, _ in ended] == [OK] * 5 + [StatusCode.UNAVAILABLE] * 10
        assert by_outcome(counts(daemon)) == {"ok": 5, "unavailable": 10}
        text = daemon.get("/metrics")[1]
        unhealthy = [line for line in text.splitlines() if line.startswith("inferd_model_unhealthy{")]
        assert len(unhealthy) == 1
        assert all(label in unhealthy[0] for label in ('model="echo"', 'version="1"', 'reason="device_lost"'))
        assert "CL_OUT_OF_RESOURCES" in daemon.get("/readyz")[1]
    assert daemon.stop() == 0, daemon.log()
    assert not daemon.events("device check started in a fresh process")
