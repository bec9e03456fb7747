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
from tests.system.series import scrape
from tests.system.test_workers import PATIENCE, counted, pids, running, says
from tests.system.wire import connect, echo, method

pytestmark = pytest.mark.system

BLOCKS_ON_SIGNAL = """
import signal, threading
signal.signal(signal.SIGUSR1, lambda *_: threading.Event().wait())
"""


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
    flags += ("--drain-timeout", "1")
    # The main thread's handler blocks the event loop.
    (tmp_path / "sitecustomize.py").write_text(BLOCKS_ON_SIGNAL)
    environment = {"TMPDIR": str(scratch), "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
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
    # The worker's own traceback may be in the middle of that line.
    assert daemon.log().count("silent worker aborted") == 1
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


@pytest.mark.parametrize("daemon", [2], indirect=True)
def test_a_worker_whose_event_loop_hangs_is_named_and_replaced(daemon: Daemon) -> None:
    blocked = pids(daemon)[1]
    os.kill(blocked, signal.SIGUSR1)
    until(lambda: daemon.get("/readyz") == (200, "ready\nworker 1: does not answer\n"), PATIENCE, daemon.log)
    assert scrape(daemon).total("inferd_workers_ready") == 1
    until(lambda: pids(daemon)[1] != blocked, PATIENCE, daemon.log)
    until(lambda: daemon.get("/readyz")[1].split() == ["ready"], PATIENCE, daemon.log)


@pytest.mark.parametrize("daemon", [2], indirect=True)
def test_where_every_worker_hangs_the_daemon_is_not_ready_and_lives(daemon: Daemon) -> None:
    for pid in pids(daemon).values():
        os.kill(pid, signal.SIGSTOP)
    until(lambda: daemon.get("/readyz")[0] == 503, PATIENCE, daemon.log)
    assert daemon.get("/readyz")[1].splitlines()[1:] == [f"worker {index}: does not answer" for index in (0, 1)]
    assert daemon.get("/healthz")[0] == 200
    until(lambda: daemon.get("/readyz")[0] == 200, PATIENCE, daemon.log)


@pytest.mark.parametrize("daemon", [2], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGUSR1])
def test_no_worker_that_hangs_outlives_its_supervisor(daemon: Daemon, number: signal.Signals, scratch: Path) -> None:
    left = list(pids(daemon).values())
    for pid in left:
        os.kill(pid, number)
    daemon.process.kill()
    daemon.process.wait()
    until(lambda: not any(map(running, left)), PATIENCE, daemon.log)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("daemon", [2], indirect=True)
def test_a_second_signal_leaves_nothing_in_the_temporary_folder(daemon: Daemon, scratch: Path) -> None:
    os.kill(pids(daemon)[1], signal.SIGSTOP)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_for("draining")
    # Closer together, two count as one.
    until(lambda: daemon.process.poll() is not None or _insist(daemon), PATIENCE, daemon.log)
    assert daemon.process.returncode == 128 + signal.SIGTERM
    assert list(scratch.iterdir()) == []


def _insist(daemon: Daemon) -> bool:
    daemon.process.send_signal(signal.SIGTERM)
    return False


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
