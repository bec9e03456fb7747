"""systemd gets the daemon's state, and the watchdog is fed only while no model is silent."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferd.health.liveness import LivenessRules
from inferd.lifecycle import Lifecycle, ModelState, Phase
from inferd.systemd.notifier import SystemdNotifier
from inferd.systemd.notify import NotifySender
from tests.event_loop import on_loop, until

RULES = LivenessRules.within(0.02)


class Watchdog:
    """A notifier whose facts the test sets, and what it has said."""

    def __init__(self, path: Path) -> None:
        self.silent: dict[str, float] | None = {}
        self.asked = 0
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.lifecycle = Lifecycle()
        self.notifier = SystemdNotifier(
            NotifySender({"NOTIFY_SOCKET": str(path)}),
            self.lifecycle,
            RULES,
            wanted=lambda: [ModelState.READY, ModelState.LOADING],
            silent=self._silent,
        )

    def _silent(self) -> dict[str, float]:
        self.asked += 1
        if self.silent is None:
            raise RuntimeError("the models can't be looked at")
        return self.silent

    def hears(self, line: str, after: int = 0) -> bool:
        """Whether ``line`` was said, past the first ``after`` lines."""
        try:
            while True:
                self.heard += self._socket.recv(4096).decode().split("\n")
        except BlockingIOError:
            return line in self.heard[after:]

    def close(self) -> None:
        self.notifier.stop()
        self._socket.close()


@pytest.fixture
def watchdog(tmp_path: Path) -> Iterator[Watchdog]:
    made = Watchdog(tmp_path / "notify")
    yield made
    made.close()


def test_it_is_fed_only_while_no_model_is_silent(watchdog: Watchdog) -> None:
    @on_loop
    async def test() -> None:
        watchdog.notifier.start()
        await until(lambda: watchdog.hears("STATUS=serving 1 of 2 models, loading 1"))
        assert not watchdog.hears("WATCHDOG=1")
        watchdog.lifecycle.move(Phase.READY)
        watchdog.notifier.ready()
        await until(lambda: watchdog.hears("WATCHDOG=1"))

        watchdog.silent = {"resnet/3": 61.0}
        await until(lambda: watchdog.hears("STATUS=not alive: no answer from resnet/3 for 61 s"))
        said = len(watchdog.heard)
        watchdog.silent = {"resnet/3": 62.0}
        await until(lambda: watchdog.hears("STATUS=not alive: no answer from resnet/3 for 62 s"))
        assert not watchdog.hears("WATCHDOG=1", said)

        watchdog.silent = {}
        await until(lambda: watchdog.hears("STATUS=serving 1 of 2 models, loading 1", said))
        await until(lambda: watchdog.hears("WATCHDOG=1", said))

    test()


def test_it_is_not_fed_where_the_models_can_not_be_looked_at(watchdog: Watchdog) -> None:
    @on_loop
    async def test() -> None:
        watchdog.lifecycle.move(Phase.READY)
        watchdog.silent = None
        watchdog.notifier.start()
        await until(lambda: watchdog.asked > 3)
        assert not watchdog.hears("WATCHDOG=1")
        watchdog.lifecycle.move(Phase.DRAINING)
        await until(lambda: watchdog.hears("WATCHDOG=1"))

    test()
