"""The end of the process, whatever hangs: some time after the first signal, and at once at the second.

A thread takes the signals, because an event loop that hangs takes none. Where a thread holds the interpreter's lock
for ever, faulthandler and the kernel's alarm end the process, which need no lock.
"""

import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

import structlog

from inferd.log_writer import LAST_LINES, LogWriter
from inferd.patience import hung

log = structlog.get_logger("inferd")

GRACE_SECONDS = 15.0
"""How much longer than drain_timeout the end may take, in seconds."""
# timeout(1) and some supervisors signal a process and then its group: that counts as one signal.
_ONE_WISH_SECONDS = 0.1
# After the deadline: when faulthandler ends the process, and when the kernel does.
_TRACEBACK_SECONDS, _ALARM_SECONDS = 3.0, 5.0
LAST_SECONDS = GRACE_SECONDS + _ALARM_SECONDS
"""After drain_timeout and so many seconds, no process is left."""


class ExitDeadline:
    """Ends the process ``seconds`` after :meth:`arm`, with exit status ``status``, unless it has ended by itself."""

    def __init__(self, seconds: float, status: int, log_writer: LogWriter) -> None:
        self._seconds = seconds
        self._status = status
        self._log_writer = log_writer
        self._arming = threading.Lock()
        self._armed = False
        self._signalled: float | None = None

    def arm(self) -> None:
        """The time runs from now on. Does nothing when called again."""
        with self._arming:
            if self._armed:
                return
            self._armed = True
        signal.setitimer(signal.ITIMER_REAL, self._seconds + _ALARM_SECONDS)
        # Even while no other thread gets the interpreter's lock; it prints where each thread is.
        faulthandler.dump_traceback_later(self._seconds + _TRACEBACK_SECONDS, exit=True)
        threading.Thread(target=self._end_late, name="exit deadline", daemon=True).start()

    def take_signals(
        self, stop: Callable[[], object], reload: Callable[[], object], *, second: Callable[[], object] | None
    ) -> None:
        """From now on SIGTERM and SIGINT arm the deadline and call ``stop``, SIGHUP calls ``reload``; another SIGTERM
        or SIGINT calls ``second`` and ends the process at once, or does nothing without it. For the main thread; the
        calls are made on another one.
        """
        # An ignored or handled alarm would end nothing.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _noted)
            signal.siginterrupt(number, False)

        def take() -> None:
            # Holds the other end open, too.
            with ours, theirs:
                while taken := ours.recv(1):
                    # The event loop may be closed already.
                    with suppress(RuntimeError):
                        if taken[0] == signal.SIGHUP:
                            reload()
                        elif taken[0] in (signal.SIGTERM, signal.SIGINT):
                            self._take(signal.Signals(taken[0]), stop, second)

        threading.Thread(target=take, name="signals", daemon=True).start()

    def _take(self, number: signal.Signals, stop: Callable[[], object], second: Callable[[], object] | None) -> None:
        now = time.monotonic()
        if self._signalled is None:
            self._signalled = now
            log.info("signal received", signal=number.name)
            self.arm()
            stop()
        elif second is not None and now - self._signalled >= _ONE_WISH_SECONDS:
            log.warning("second signal received; exiting at once", signal=number.name)
            second()
            self._exit(128 + number)

    def _end_late(self) -> None:
        time.sleep(self._seconds)
        log.error("not ended in time; exiting", seconds=self._seconds, waiting_for=hung(), threads=_threads())
        self._exit(self._status)

    def _exit(self, status: int) -> None:
        self._log_writer.drain(LAST_LINES)
        os._exit(status)


def _noted(*_: object) -> None:
    """Python's handler: the signal has been written to the socket."""


def _threads() -> list[str]:
    """Where each thread is."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = []
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - the only way
        if ident != threading.get_ident():
            (last,) = traceback.extract_stack(frame, limit=1)
            found.append(f"{names.get(ident, ident)}: {last.name} ({os.path.basename(last.filename)}:{last.lineno})")
    return sorted(found)
