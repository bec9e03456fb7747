"""A worker that hangs is named, delays no probe, and is replaced, without systemd. A killed daemon leaves nothing."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inferd._pb import open_inference_pb2 as pb
from inferd.tensors import DType
from tests import models
from tests.system.daemon import Daemon
from tests.system.prometheus import until
from tests.system.test_workers import PATIENCE, counted, pids, running, says
from tests.system.wire import connect, echo, method

pytestmark = pytest.mark.system


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """The temporary folder of a daemon."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def daemon(tmp_path: Path, cache_dir: Path, scratch: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    models.save(models.identity(DType.INT64, [-1]), tmp_path / "models", "echo")
    flags = ("--workers", str(request.param), "--cache-dir", str(cache_dir), "--preflight", "off")
    environment = {"TMPDIR": str(scratch)}
    with Daemon(tmp_path / "models", *flags, environment=environment) as started:
        yield started


@pytest.mark.parametrize("daemon", [2], indirect=True)
@pytest.mark.parametrize("which", [0, 1])
def test_a_hung_worker_is_named_and_replaced(daemon: Daemon, which: int, figure: Callable[[str], None]) -> None:
    hung = pids(daemon)[which]
    os.kill(hung, signal.SIGSTOP)
    begun = time.monotonic()
    try:
        status, text = daemon.get("/readyz")
        probed = time.monotonic() - begun
        assert status == 200
        assert text.splitlines()[1:] == [f"worker {which}: does not answer"]
        assert daemon.get("/healthz")[0] == 200
        assert daemon.get("/metrics")[0] == 200
        until(lambda: pids(daemon)[which] != hung, PATIENCE, daemon.log)
        replaced = time.monotonic() - begun
    finally:
        if running(hung):
            os.kill(hung, signal.SIGCONT)
    assert [event["worker"] for event in daemon.events("silent worker aborted")] == [which]
    until(lambda: daemon.get("/readyz")[1].split() == ["ready"], PATIENCE, daemon.log)
    figure(f"worker {which} hangs: /readyz names it in {probed:.2f} s, it is replaced after {replaced:.0f} s")


@pytest.mark.parametrize("daemon", [2], indirect=True)
def test_a_call_for_all_workers_does_not_wait_for_one_that_hangs(daemon: Daemon) -> None:
    async def statistics() -> list[str]:
        async with connect(daemon.grpc) as channel:
            await method(channel, "ModelInfer")(echo([1]))
            # This connection's worker goes on; the other hangs.
            live = await asyncio.to_thread(serving, daemon)
            [hung] = [pid for worker, pid in pids(daemon).items() if worker not in live] or [pids(daemon)[1]]
            os.kill(hung, signal.SIGSTOP)
            try:
                answer = await method(channel, "ModelStatistics")(
                    pb.ModelStatisticsRequest(name="echo"), timeout=PATIENCE
                )
            finally:
                os.kill(hung, signal.SIGCONT)
            return [model.name for model in answer.model_stats]

    assert asyncio.run(statistics()) == ["echo"]


def serving(daemon: Daemon) -> set[int]:
    """The workers that have answered a request."""
    return {worker for worker, pid in pids(daemon).items() if counted(says(pid))["echo", "ok"]}


@pytest.mark.parametrize("daemon", [1, 2], indirect=True)
def test_a_daemon_that_is_killed_leaves_nothing_in_the_temporary_folder(daemon: Daemon, scratch: Path) -> None:
    asyncio.run(_asked(daemon))
    left = list(pids(daemon).values())
    daemon.process.kill()
    daemon.process.wait()
    until(lambda: not any(map(running, left)), PATIENCE, daemon.log)
    assert list(scratch.iterdir()) == []


async def _asked(daemon: Daemon) -> None:
    async with connect(daemon.grpc) as channel:
        await method(channel, "ModelInfer")(echo([1]), timeout=PATIENCE)
