"""One worker's process: started on its own CPUs, stopped by closing a pipe, observed by sd_notify(3) messages."""

import os
import socket
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread

from inferd.workers.worker_identity import WorkerIdentity

# systemd's variables are for the supervisor only.
_NOT_INHERITED = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")


class NotifySocket:
    """Receives the sd_notify(3) messages of one worker, across its processes."""

    def __init__(self, identity: WorkerIdentity) -> None:
        self.path = identity.socket("notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(self.path))

    def fileno(self) -> int:
        """The file descriptor, for an event loop."""
        return self._socket.fileno()

    def receive(self) -> list[dict[str, str]]:
        """The messages received since the last call, each as its assignments."""
        messages = []
        with suppress(BlockingIOError):
            while True:
                lines = self._socket.recv(4096).decode(errors="replace").splitlines()
                messages.append(dict(line.split("=", 1) for line in lines if "=" in line))
        return messages

    def close(self) -> None:
        self._socket.close()


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """A worker: its identity, its command, and its CPUs."""

    identity: WorkerIdentity
    command: tuple[str, ...]
    cpus: frozenset[int]


class Process:
    """Runs the worker of ``spec`` on its CPUs alone; calls ``ended`` with the exit status, on its own thread.

    With ``watchdog`` the worker must report in that often, in seconds.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        ended: Callable[[int], None],
        *,
        watchdog: float | None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        identity = spec.identity
        variables = {name: value for name, value in environment.items() if name not in _NOT_INHERITED}
        variables |= identity.environment() | {"NOTIFY_SOCKET": str(identity.socket("notify"))}
        if watchdog is not None:
            variables["WATCHDOG_USEC"] = str(round(watchdog * 1e6))
        before = os.sched_getaffinity(0)
        # A child inherits the CPUs of the thread that starts it; they must be right from the start, as OpenVINO counts
        # once.
        os.sched_setaffinity(0, spec.cpus)
        try:
            # A session of its own: signals from a terminal are for the supervisor, which tells the workers.
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                spec.command, stdin=subprocess.PIPE, env=variables, start_new_session=True
            )
        finally:
            os.sched_setaffinity(0, before)
        self.pid = self._process.pid
        Thread(target=lambda: ended(self._process.wait()), name=f"worker {identity.index}", daemon=True).start()

    def request_stop(self) -> None:
        """Make it drain by closing the pipe, which also happens if the supervisor dies. Harmless when called again."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def signal(self, number: int) -> None:
        """Send ``number``; does nothing if the process has ended."""
        self._process.send_signal(number)
