"""The real daemon's messages to its supervisor, on a socket of the test in place of systemd's."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from inferd.rpc.client import InferenceClient
from inferd.rpc.rpc_client import CallFailed
from tests import models
from tests.system.daemon import Daemon
from tests.system.echo_models import serial, steps

pytestmark = pytest.mark.system

WATCHDOG = 2.0
PATIENCE = 60.0
LOOPS, LONG = 50, 1000
"""So many steps in so many loops keep a model busy for longer than it may be silent. A run is cancelled between two."""


class Supervisor:
    """Hears what the daemon says: each message as the lines it has."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(PATIENCE)
        self.heard: list[list[str]] = []

    def hear(self, wanted: Callable[[list[str]], bool]) -> list[str]:
        """Listen until a message is ``wanted``, and return it."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            message = self._socket.recv(4096).decode().split("\n")
            self.heard.append(message)
            if wanted(message):
                return message
        raise AssertionError(f"not heard: {self.heard[-20:]}")

    def forget(self) -> None:
        """Skip what was said up to now."""
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.recv(4096)
        except BlockingIOError:
            self._socket.settimeout(PATIENCE)
        self.heard.clear()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    listening = Supervisor(tmp_path)
    yield listening
    listening.close()


def under(supervisor: Supervisor, repository: Path, watchdog: float = WATCHDOG) -> Daemon:
    environment = {"NOTIFY_SOCKET": supervisor.path, "WATCHDOG_USEC": str(int(watchdog * 1e6))}
    return Daemon(repository, environment=environment)


def alive(message: list[str]) -> bool:
    return message == ["WATCHDOG=1"]


def says(beginning: str) -> Callable[[list[str]], bool]:
    return lambda message: any(line.startswith(beginning) for line in message)


def test_a_daemon_says_when_it_loads_serves_and_ends(tmp_path: Path, supervisor: Supervisor) -> None:
    models.save(models.identity(models.DType.INT64, [-1]), tmp_path / "models", "echo")
    with under(supervisor, tmp_path / "models") as daemon:
        assert supervisor.hear(says("READY=1")) == ["READY=1", "STATUS=serving 1 of 1 model"]
        assert any(says("EXTEND_TIMEOUT_USEC=")(message) for message in supervisor.heard)
        for _ in range(5):
            supervisor.hear(alive)
        assert daemon.stop() == 0
        supervisor.hear(says("STOPPING=1"))


def test_probes_are_counted_nowhere(tmp_path: Path, supervisor: Supervisor) -> None:
    models.save(models.identity(models.DType.INT64, [-1]), tmp_path / "models", "echo")
    with under(supervisor, tmp_path / "models", watchdog=0.2) as daemon:
        supervisor.hear(says("READY=1"))
        for _ in range(20):
            supervisor.hear(alive)
        text = daemon.get("/metrics")[1]
        assert 'inferd_inferences_total{model="echo",version="1"} 0' in text.replace(".0\n", "\n")
        busy = [line for line in text.splitlines() if line.startswith("inferd_busy_seconds_total")]
        assert busy, text
        assert any(float(line.split()[-1]) > 0 for line in busy), "no probe has run"


def test_a_model_that_hangs_stops_the_feeding_until_it_answers_again(tmp_path: Path, supervisor: Supervisor) -> None:
    models.save(steps(LOOPS), tmp_path / "models", "busy", settings=serial(16))
    models.save(models.identity(models.DType.INT64, [-1]), tmp_path / "models", "echo")
    with (
        under(supervisor, tmp_path / "models") as daemon,
        InferenceClient(daemon.grpc, timeout=20 * WATCHDOG) as client,
    ):
        supervisor.hear(says("READY=1"))
        hanging = threading.Thread(target=_ask, args=(client, LONG))
        hanging.start()
        supervisor.hear(says("STATUS=not alive: no answer from busy/1"))
        supervisor.heard.clear()
        # It is not said to be alive as long as the model is silent; the other one answers all the while.
        supervisor.hear(says("STATUS=not alive: no answer from busy/1"))
        assert not any(map(alive, supervisor.heard))
        assert client.infer("echo", {"x": np.array([7])})["x"].tolist() == [7]
        client.close()
        hanging.join()
        supervisor.hear(says("STATUS=serving 2 of 2 models"))
        supervisor.hear(alive)


def test_a_full_queue_with_completions_keeps_the_daemon_alive(tmp_path: Path, supervisor: Supervisor) -> None:
    models.save(steps(), tmp_path / "models", "busy", settings=serial(1))
    with under(supervisor, tmp_path / "models") as daemon:
        supervisor.hear(says("READY=1"))
        over = threading.Event()
        clients = [threading.Thread(target=_keep_asking, args=(daemon.grpc, 500, over)) for _ in range(6)]
        for client in clients:
            client.start()
        supervisor.forget()
        began = time.monotonic()
        while time.monotonic() - began < 3 * WATCHDOG:
            supervisor.hear(alive)
        over.set()
        for client in clients:
            client.join()
        assert not any(says("STATUS=not alive")(message) for message in supervisor.heard)


def _ask(client: InferenceClient, count: int) -> None:
    try:
        client.infer("busy", {"steps": np.array(count, np.int32)})
    except (CallFailed, ValueError):
        # Given up by the test: cancelled, or the channel is closed.
        return


def _keep_asking(target: str, count: int, over: threading.Event) -> None:
    with InferenceClient(target) as client:
        while not over.is_set():
            _ask(client, count)
