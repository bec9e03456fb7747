"""Logs OpenVINO's messages in full; clients only see a summary."""

import time
from collections.abc import Callable
from threading import Lock

import structlog

from inferd.errors import one_line

log = structlog.get_logger("inferd.engine")

_MOST = 4000
# Clients can cause any number of failures: don't let them flood the log.
_AT_ONCE = 10
_SECONDS_A_LINE = 1.0
# inferd cancels runs whose clients have left; that is no failure.
_CANCELLED = "Infer Request was canceled"


class MessageLog:
    """Logs ten messages at once, then one per second. On any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._free_at = clock() - _AT_ONCE * _SECONDS_A_LINE
        self._untold = 0

    def tell(self, message: str, told: str) -> None:
        """Log ``message``, summarised to clients as ``told``, unless they are the same or the run was cancelled."""
        whole = one_line(message.strip(), _MOST)
        if whole in ("", told) or told.endswith(_CANCELLED):
            return
        with self._lock:
            now = self._clock()
            free_at = max(self._free_at, now - _AT_ONCE * _SECONDS_A_LINE)
            if free_at + _SECONDS_A_LINE > now:
                self._untold += 1
                return
            self._free_at, untold = free_at + _SECONDS_A_LINE, self._untold
            self._untold = 0
        log.warning("OpenVINO failed", told=told, message=whole, **({"others_since": untold} if untold else {}))


MESSAGE_LOG = MessageLog()
"""The log of this process."""
