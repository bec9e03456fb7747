"""Writes the log on a thread of its own: a log that is not read must stop nothing else.

A pipe holds 64 KiB. A thread that writes to a full one waits until it is read, and so would every request.
"""

import os
import select
import time
from collections import deque
from threading import Condition, Thread

LAST_LINES = 1.0
"""Seconds for the last lines, where the reader of the log is slow."""

# Bytes that wait to be written; what comes beyond them is lost.
_MOST_WAITING = 1 << 20
# Bytes that are written together, unless one line is longer: those of several processes never mix in a pipe.
_AT_ONCE = select.PIPE_BUF


class LogWriter:
    """A text stream for lines, onto a file descriptor. :meth:`write` never waits.

    ``lost`` counts lines that were never written, because too many waited or because the descriptor took none: a full
    disk, a reader that is gone.
    """

    def __init__(self, descriptor: int, most_waiting: int = _MOST_WAITING) -> None:
        self._descriptor = descriptor
        self._most = most_waiting
        self._lines: deque[bytes] = deque()
        # Bytes of the lines, and of what is being written.
        self._waiting = 0
        self._changed = Condition()
        self._thread: Thread | None = None
        self.lost = 0

    def write(self, text: str) -> int:
        """Have ``text``, a line, written; any thread."""
        line = text.encode(errors="replace")
        with self._changed:
            if self._waiting + len(line) > self._most:
                self.lost += 1
                return len(text)
            self._lines.append(line)
            self._waiting += len(line)
            if self._thread is None:
                self._thread = Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Lines are never held back."""

    def isatty(self) -> bool:
        """Whether people read it."""
        return os.isatty(self._descriptor)

    def drain(self, seconds: float) -> bool:
        """Wait until all is written, for at most so long; whether it was."""
        until = time.monotonic() + seconds
        with self._changed:
            while self._waiting:
                if (left := until - time.monotonic()) <= 0:
                    return False
                self._changed.wait(left)
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines:
                    self._changed.wait()
                lines = [self._lines.popleft()]
                size = len(lines[0])
                while self._lines and size + len(self._lines[0]) <= _AT_ONCE:
                    lines.append(self._lines.popleft())
                    size += len(lines[-1])
            written = self._written(b"".join(lines))
            with self._changed:
                self._waiting -= size
                if not written:
                    self.lost += len(lines)
                self._changed.notify_all()

    def _written(self, data: bytes) -> bool:
        """Write all of it, which may take for ever; False if the descriptor takes no more."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                select.select((), (self._descriptor,), ())
            except OSError:
                return False
        return True
