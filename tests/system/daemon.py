"""The real daemon as a process of its own, for tests that look at it from outside."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_START_TIMEOUT = 300.0
_STOP_TIMEOUT = 60.0


class Daemon:
    """`inferd serve` on ``repository``, at free ports of the loopback interface.

    It tunes nothing unless ``flags`` say so: a test's daemon is to be the same from its first request to its
    last. It tries no model in a child process unless they say so: most tests know that their models are good.
    It starts at once; entering the context waits until it is ready, leaving it stops it.
    ``under`` is a command that runs it as its own, ``python`` the interpreter of another environment.
    Variables named INFERD_* are kept from it, except those in ``environment``. All that it writes to
    stderr is kept in ``lines``.
    """

    def __init__(
        self,
        repository: Path,
        *flags: str,
        environment: Mapping[str, str] | None = None,
        under: Sequence[str] = (),
        python: Path = Path(sys.executable),
    ) -> None:
        command = [*under, str(python), "-m", "inferd", "serve", "--model-repository", str(repository)]
        command += ["--grpc-bind", "127.0.0.1:0", "--metrics-bind", "127.0.0.1:0", "--log-format", "json"]
        for setting in ("--tuning", "--preflight"):
            command += [] if setting in flags else [setting, "off"]
        command += flags
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("INFERD_")}
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            command,
            env=inherited | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, name="daemon-log", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as log:
            for line in log:
                with self._changed:
                    self.lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def __enter__(self) -> Self:
        try:
            self.wait_for("ready")
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def grpc(self) -> str:
        """HOST:PORT of the gRPC endpoint, known once the daemon is ready."""
        return str(self.wait_for("ready")["grpc"])

    @property
    def metrics(self) -> str:
        """HOST:PORT of the metrics endpoint, known once the daemon is ready."""
        return str(self.wait_for("ready")["metrics"])

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines so far whose event is ``name``, parsed."""
        with self._changed:
            lines = list(self.lines)
        return [event for event in map(_parsed, lines) if event.get("event") == name]

    def wait_for(self, name: str, timeout: float = _START_TIMEOUT) -> dict[str, Any]:
        """The first log line whose event is ``name``; fails with the whole log when none comes."""
        with self._changed:
            # wait_for evaluates its predicate on each new line, with the lock held.
            self._changed.wait_for(lambda: self._ended or self._logged(name), timeout)
            if (found := self._logged(name)) is not None:
                return found
            how = "ended without" if self._ended else f"did not within {timeout:.0f} s log"
        raise AssertionError(f"the daemon {how} the event '{name}'\n{self.log()}")

    def _logged(self, name: str) -> dict[str, Any] | None:
        return next((event for event in map(_parsed, self.lines) if event.get("event") == name), None)

    def get(self, path: str, timeout: float = 10.0) -> tuple[int, str]:
        """Status and body of a GET at the metrics endpoint."""
        connection = http.client.HTTPConnection(self.metrics, timeout=timeout)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = _STOP_TIMEOUT) -> int:
        """Ask it to end and wait until it has: the exit status, also when it had ended already."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the daemon ran on for {timeout:.0f} s after {number.name}\n{self.log()}") from None
        self._reader.join()
        return status

    def kill(self) -> None:
        """End it without asking."""
        self.process.kill()
        self.process.wait()
        self._reader.join()

    def log(self) -> str:
        """The whole log so far, for messages of failing tests."""
        with self._changed:
            return "--- its log\n" + "\n".join(self.lines) + "\n---"


def _parsed(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}
