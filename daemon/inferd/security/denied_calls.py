"""Counts and logs the calls that were refused for their credentials."""

import time
from collections import Counter
from collections.abc import Callable
from threading import Lock
from typing import Literal

import structlog

from inferd.errors import InferdError, NotAuthenticated, OutOfScope

log = structlog.get_logger("inferd.security")

Endpoint = Literal["grpc", "metrics"]
ENDPOINTS: tuple[Endpoint, ...] = ("grpc", "metrics")
REASONS = (*NotAuthenticated.SENTENCES, OutOfScope.reason)

# A refused client may call again at once, any number of times: it must not fill the log.
_SECONDS_A_LINE = 1.0


class DeniedCalls:
    """``counts`` are by endpoint and reason. May be called on any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts = Counter({(endpoint, reason): 0 for endpoint in ENDPOINTS for reason in REASONS})
        self._clock = clock
        self._lock = Lock()
        self._next = 0.0
        self._unlogged = 0

    def add(self, endpoint: Endpoint, call: str, error: InferdError, peer: str) -> None:
        """``call``, from the address ``peer``, was refused with ``error``. Logs at most one line a second."""
        with self._lock:
            self.counts[endpoint, error.reason] += 1
            now = self._clock()
            if now < self._next:
                self._unlogged += 1
                return
            self._next, unlogged = now + _SECONDS_A_LINE, self._unlogged
            self._unlogged = 0
        name = error.name if isinstance(error, NotAuthenticated | OutOfScope) else ""
        log.warning(
            "call refused",
            endpoint=endpoint,
            call=call,
            reason=error.reason,
            client=name,
            peer=peer,
            **({"others_since": unlogged} if unlogged else {}),
        )
