"""Tells systemd the daemon's state, by the datagrams of sd_notify(3).

The protocol is a few lines of text on a socket. The libraries for it either need libsystemd's headers at
installation, or have had no release for years.
"""

import os
import socket
import time
from collections.abc import Mapping

import structlog

log = structlog.get_logger("inferd.systemd")

# The supervisor's queue is seldom full, and then for a moment; the event loop must not hang on it.
_SEND_SECONDS = 0.5


class NotifySender:
    """Sends to the socket that ``NOTIFY_SOCKET`` names; without one every method does nothing.

    A message that can't be sent is logged, once: the daemon serves on.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._complained = False
        if self._address.startswith("@"):
            # An abstract socket: its name begins with a zero byte, which no variable can hold.
            self._address = "\0" + self._address[1:]
        elif self._address and not self._address.startswith("/"):
            log.warning("unsupported NOTIFY_SOCKET address", address=self._address)
            self._address = ""

    @property
    def enabled(self) -> bool:
        """Whether a supervisor listens."""
        return bool(self._address)

    def ready(self, status: str) -> None:
        """Start-up or a reload has finished."""
        self._send("READY=1", _status(status))

    def reloading(self) -> None:
        """A reload begins; :meth:`ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str, seconds: float) -> None:
        """The drain begins and may take so many seconds from now, even if the unit allows less."""
        self._send("STOPPING=1", _status(status), _extension(seconds))

    def status(self, status: str) -> None:
        """Set the status line, one line for people."""
        self._send(_status(status))

    def extend(self, status: str, seconds: float) -> None:
        """Start-up goes on: it may take so many seconds more, counted from now."""
        self._send(_status(status), _extension(seconds))

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(_SEND_SECONDS)
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            if not self._complained:
                log.warning("supervisor not notified", problem=str(error), message=lines[0])
            self._complained = True


def watchdog_seconds(environment: Mapping[str, str] = os.environ, pid: int | None = None) -> float | None:
    """The supervisor's watchdog interval in seconds; None if it does not watch this process (``pid``, by default this
    one)."""
    usec = environment.get("WATCHDOG_USEC", "")
    asked = environment.get("WATCHDOG_PID", "")
    if not (usec.isascii() and usec.isdigit() and int(usec)):
        return None
    if asked and asked != str(os.getpid() if pid is None else pid):
        return None
    return int(usec) / 1e6


def runs_as_service(environment: Mapping[str, str] = os.environ, pid: int | None = None) -> bool:
    """Whether this process (``pid``, by default this one) is a service itself, and not started by one, such as a
    terminal: only then will a supervisor start another in its place."""
    if environment.get("NOTIFY_SOCKET"):
        return True
    started = environment.get("SYSTEMD_EXEC_PID", "")
    return bool(environment.get("INVOCATION_ID")) and started == str(os.getpid() if pid is None else pid)


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())


def _extension(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}"
