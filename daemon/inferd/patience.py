"""A time limit for work that may never end, such as reading from a network file system whose server is gone.

A thread that waits in the kernel can't be ended. So each purpose has one such thread at most, there are few of them in
all, and none holds up the end of the process.
"""

import errno
import time
from collections.abc import Callable
from threading import Lock, Thread, current_thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")

SECONDS = 15.0
"""How long reading may make no progress."""
_MOST_HUNG = 16

_hung: list["_Attempt[Any]"] = []
_hung_lock = Lock()


class _Attempt(Thread, Generic[T]):
    """One run of ``work``: when it last made progress, and ``at`` what."""

    def __init__(self, purpose: str, work: Callable[[], T]) -> None:
        super().__init__(name="patience", daemon=True)
        self.purpose = self.at = purpose
        self.progress = time.monotonic()
        self._work = work
        self._result: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result.append(self._work())
        except BaseException as error:
            self._error = error

    def result(self) -> T:
        """What the ended work returned or raised."""
        if self._error is not None:
            raise self._error
        return self._result[0]


def limited(purpose: str, work: Callable[[], T], seconds: float = SECONDS) -> T:
    """What ``work`` returns or raises; it runs on a thread of its own.

    Raises TimeoutError once it has made no progress for ``seconds``, and at once while an earlier run for ``purpose``
    hangs. Its ``strerror`` says what was waited for. Inside of other limited work, the outer limit holds.
    """
    if isinstance(current_thread(), _Attempt):
        return work()
    with _hung_lock:
        _hung[:] = [attempt for attempt in _hung if attempt.is_alive()]
        if found := next((attempt for attempt in _hung if attempt.purpose == purpose), None):
            raise TimeoutError(errno.ETIMEDOUT, f"still waiting for {found.at}")
        if len(_hung) >= _MOST_HUNG:
            raise TimeoutError(errno.ETIMEDOUT, f"not tried, as inferd waits for {_MOST_HUNG} other reads")
    attempt = _Attempt(purpose, work)
    try:
        attempt.start()
    except RuntimeError:
        raise OSError(errno.EAGAIN, "no thread left to read it with") from None
    while (left := attempt.progress + seconds - time.monotonic()) > 0:
        attempt.join(left)
        if not attempt.is_alive():
            return attempt.result()
    with _hung_lock:
        _hung.append(attempt)
    raise TimeoutError(errno.ETIMEDOUT, f"no answer for {seconds:g} s from {attempt.at}")


def mark(at: str = "") -> None:
    """Limited work calls this whenever it has made progress, and before it waits ``at`` something that messages may
    name. Does nothing elsewhere."""
    attempt = current_thread()
    if isinstance(attempt, _Attempt):
        attempt.progress = time.monotonic()
        attempt.at = at or attempt.at


def hung() -> list[str]:
    """What inferd waits for in vain at present."""
    with _hung_lock:
        return sorted(attempt.at for attempt in _hung if attempt.is_alive())
