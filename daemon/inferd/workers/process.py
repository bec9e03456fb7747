"""One worker's process: started on its own CPUs, told to end by a pipe, heard through the socket of sd_notify(3)."""

import os
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from threading import Thread

from inferd.workers.place import Place

# What systemd has told the supervisor is not for its workers.
_OUR_OWN = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")


class Ear:
    """Hears what the processes of one worker say, one after the other."""

    def __init__(self, place: Place) -> None:
        self.path = place.socket("notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(self.path))

    def fileno(self) -> int:
        """For an event loop."""
        return self._socket.fileno()

    def heard(self) -> list[dict[str, str]]:
        """The messages that have come since the last time, each as its assignments."""
        messages = []
        with suppress(BlockingIOError):
            while True:
                lines = self._socket.recv(4096).decode(errors="replace").splitlines()
                messages.append(dict(line.split("=", 1) for line in lines if "=" in line))
        return messages

    def close(self) -> None:
        self._socket.close()


class Process:
    """Runs ``command`` as the worker at ``place``, on ``cpus`` alone; ``ended`` is called with the exit status, on a
    thread of its own. With ``watchdog`` it is to say all that often, in seconds, that all is well."""

    def __init__(
        self,
        command: Sequence[str],
        place: Place,
        cpus: frozenset[int],
        watchdog: float | None,
        ended: Callable[[int], None],
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        told = {name: value for name, value in environment.items() if name not in _OUR_OWN}
        told |= place.environment() | {"NOTIFY_SOCKET": str(place.socket("notify"))}
        if watchdog is not None:
            told["WATCHDOG_USEC"] = str(round(watchdog * 1e6))
        ours = os.sched_getaffinity(0)
        # A child has the CPUs of the thread that starts it, from its first instruction on: OpenVINO counts them once.
        os.sched_setaffinity(0, cpus)
        try:
            # A session of its own: what a terminal sends to its group is for the supervisor, which tells the workers.
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                command, stdin=subprocess.PIPE, env=told, start_new_session=True
            )
        finally:
            os.sched_setaffinity(0, ours)
        self.pid = self._process.pid
        Thread(target=lambda: ended(self._process.wait()), name=f"worker {place.index}", daemon=True).start()

    def tell_to_end(self) -> None:
        """Have it drain, as it does when the supervisor is gone: its end of the pipe says so. Harmless again."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def signal(self, number: int) -> None:
        """Send ``number``; nothing where it has ended."""
        self._process.send_signal(number)
