"""Workers are started, replaced, reloaded and ended; here they are small scripts with a worker's messages."""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from inferd.errors import ConfigurationError
from inferd.systemd.notify import NotifySender
from inferd.workers.lifecycle import WorkerState
from inferd.workers.port import HeldPort
from inferd.workers.process import WorkerSpec
from inferd.workers.supervisor import WorkerSupervisor
from inferd.workers.worker_identity import WorkerIdentity
from tests.system.prometheus import until

PATIENCE = 60.0

# Says that it is ready, and then every second that it is alive; reloads on SIGHUP, and ends with {status} when its pipe
# does; {extra} comes before that.
SCRIPT = """
import os, signal, socket, sys, threading
line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def say(*lines):
    line.sendto("\\n".join(lines).encode(), os.environ["NOTIFY_SOCKET"])
def reload(*_):
    say("RELOADING=1")
    say("READY=1", "STATUS=serving 1 of 1 model")
signal.signal(signal.SIGHUP, reload)
{extra}
say("STATUS=starting")
say("READY=1", "STATUS=serving 1 of 1 model")
ended = threading.Event()
def live():
    while not ended.wait(1):
        say(*{alive!r})
threading.Thread(target=live, daemon=True).start()
sys.stdin.read()
sys.exit({status})
"""


class Systemd:
    """Hears what the supervisor says, on a thread of its own: its queue holds a few messages only."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "systemd"))
        self.notifier = NotifySender({"NOTIFY_SOCKET": str(folder / "systemd")})
        self.heard: list[str] = []
        self._thread = threading.Thread(target=self._hear, name="systemd", daemon=True)
        self._thread.start()

    def _hear(self) -> None:
        while (message := self._socket.recv(4096)) != b"END":
            self.heard += message.decode().split("\n")

    def said(self, line: str) -> int:
        """How often it has said ``line``."""
        return self.heard.count(line)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"END", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


class Scene:
    """Workers that run ``scripts``, and what comes of them."""

    def __init__(self, folder: Path, scripts: list[str], watchdog: float | None = None) -> None:
        self.systemd = Systemd(folder)
        self.completed = 0
        secret = WorkerIdentity(0, 1, folder).secret
        specs = [
            WorkerSpec(
                WorkerIdentity(index, len(scripts), folder, secret),
                (sys.executable, "-c", script),
                frozenset(os.sched_getaffinity(0)),
            )
            for index, script in enumerate(scripts)
        ]
        self.workers = WorkerSupervisor(specs, self.systemd.notifier, watchdog=watchdog, on_complete=self._complete)
        self.workers.start()

    def _complete(self) -> None:
        self.completed += 1

    async def until(self, holds: Callable[[], bool]) -> None:
        """There is nothing to wait on for what another process does."""
        await asyncio.to_thread(until, holds, PATIENCE, lambda: f"{self.workers.states}, {self.systemd.heard}")

    def generations(self) -> dict[int, int]:
        return dict(self.workers.present.keys())


def script(extra: str = "", status: int = 0, alive: tuple[str, ...] = ("WATCHDOG=1",)) -> str:
    return SCRIPT.format(extra=extra, status=status, alive=alive)


def run(scene: Callable[[], Scene], test: Callable[[Scene], Awaitable[None]]) -> None:
    async def within() -> None:
        made = scene()
        try:
            await test(made)
        finally:
            await made.workers.drain(PATIENCE)
            made.systemd.close()

    asyncio.run(within())


def test_all_are_ready_before_the_daemon_is_and_the_first_comes_alone(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        await scene.until(lambda: scene.workers.states[0] is WorkerState.READY)
        assert scene.workers.states[1] in (WorkerState.WAITING, WorkerState.STARTING)
        assert not scene.workers.ready
        (tmp_path / "go").touch()
        await scene.until(lambda: scene.completed == 1)
        assert scene.workers.ready
        assert scene.systemd.said("READY=1") == 1
        assert scene.systemd.said("STATUS=serving 1 of 1 model") >= 1

    # The second waits for the test, so that it can be seen not to be there yet.
    held = f"import pathlib\nwhile not pathlib.Path({str(tmp_path / 'go')!r}).exists(): pass"
    run(lambda: Scene(tmp_path, [script(), script(held)]), test)


def test_one_that_dies_is_replaced_and_the_daemon_stays_ready(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        await scene.until(lambda: scene.completed == 1)
        _kill(scene, 1)
        await scene.until(lambda: scene.generations().get(1) == 2 and scene.workers.states[1] is WorkerState.READY)
        assert scene.generations()[0] == 1
        assert (scene.workers.ready, scene.workers.replaced, scene.completed) == (True, 1, 1)

    run(lambda: Scene(tmp_path, [script(), script()]), test)


def _kill(scene: Scene, index: int) -> None:
    process = scene.workers._workers[index].process
    assert process is not None
    process.signal(signal.SIGKILL)


def test_they_reload_one_after_the_other_and_the_daemon_says_so_once(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        await scene.until(lambda: scene.completed == 1)
        scene.workers.reload()
        await scene.until(lambda: scene.systemd.said("READY=1") == 2)
        assert scene.systemd.said("RELOADING=1") == 1
        assert [worker.reloads for worker in scene.workers._workers] == [1, 1]

    run(lambda: Scene(tmp_path, [script(), script()]), test)


def test_one_that_says_nothing_any_more_is_replaced(tmp_path: Path) -> None:
    """The first says only what it waits for once it is ready, as one with a model that hangs; its successor goes on."""
    once = f"""
import pathlib, threading
hung = pathlib.Path({str(tmp_path / "hung")!r})
def go_on():
    while True:
        say("WATCHDOG=1")
        threading.Event().wait(0.05)
if hung.exists():
    threading.Thread(target=go_on, daemon=True).start()
hung.touch()
"""

    async def test(scene: Scene) -> None:
        await scene.until(lambda: scene.completed == 1)
        await scene.until(lambda: scene.generations().get(0, 0) > 1 and scene.workers.states[0] is WorkerState.READY)
        fed = scene.systemd.said("WATCHDOG=1")
        await scene.until(lambda: scene.systemd.said("WATCHDOG=1") > fed)

    run(lambda: Scene(tmp_path, [script(once, alive=("STATUS=not alive: no answer",))], watchdog=3.0), test)


def test_where_none_is_heard_the_daemon_is_not_ready_and_one_that_was_stopped_with_them_replaces_none(
    tmp_path: Path,
) -> None:
    async def test(scene: Scene) -> None:
        await scene.until(lambda: scene.completed == 1)
        _signal(scene, signal.SIGSTOP)
        await scene.until(lambda: not scene.workers.serving)
        assert not scene.workers.ready
        assert set(scene.workers.states) == {WorkerState.READY}
        # As after a stop of all, for longer than any worker may be silent.
        scene.workers._last_check -= 1000.0
        for worker in scene.workers._workers:
            worker.lifecycle.last_heard -= 1000.0
        _signal(scene, signal.SIGCONT)
        await scene.until(lambda: scene.workers.ready and len(scene.workers.serving) == 2)
        assert scene.workers.replaced == 0

    run(lambda: Scene(tmp_path, [script(), script()]), test)


def _signal(scene: Scene, number: signal.Signals) -> None:
    for worker in scene.workers._workers:
        assert worker.process is not None
        worker.process.signal(number)


def test_a_first_start_that_was_refused_is_told_and_not_tried_again(tmp_path: Path) -> None:
    async def test(scene: Scene) -> None:
        assert await asyncio.wait_for(scene.workers.failed(), PATIENCE) == 78
        assert scene.workers.states[0] is WorkerState.WAITING

    run(lambda: Scene(tmp_path, ["raise SystemExit(78)", script()]), test)


@pytest.mark.parametrize(("status", "clean"), [(0, True), (1, False)])
def test_a_drain_is_clean_where_every_worker_says_so(status: int, clean: bool, tmp_path: Path) -> None:
    async def within() -> None:
        scene = Scene(tmp_path, [script(), script(status=status)])
        await scene.until(lambda: scene.completed == 1)
        assert await scene.workers.drain(PATIENCE) is clean
        assert set(scene.workers.states) == {WorkerState.ENDED}
        assert not scene.workers.ready
        scene.systemd.close()

    asyncio.run(within())


def test_a_port_is_held_for_those_who_share_it() -> None:
    held = HeldPort("127.0.0.1:0", shared=False)
    try:
        host, port = held.bind.split(":")
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind((host, int(port)))
            worker.listen()
            with socket.create_connection((host, int(port)), PATIENCE):
                pass
            with pytest.raises(ConfigurationError, match="can't listen on"):
                HeldPort(held.bind, shared=False)
            HeldPort(held.bind, shared=True).close()
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind((host, int(port)))
    finally:
        held.close()
