"""How long calls wait in gRPC before inferd sees them, measured by probes: calls that inferd makes to itself.

The event loop's thread reads the sockets and takes calls in the order of arrival. Until then they wait where no
deadline, priority or forecast of the scheduler reaches them. What a probe has waited, the calls around it have waited
too.
"""

from collections import deque

# A shorter wait is not queueing: any busy machine wakes a thread this late. ns.
_NOISE = 1_000_000
# The wait is the least of this many probes: a queue delays each of them, a hiccup only one.
_LATEST = 3
# At most this many are in flight; in a longer queue the oldest of them tells enough.
_MOST = 64
# Nanoseconds between two probes: while calls wait, while none seems to, and while none is open. A probe costs as much
# as a call, and without open calls no queue can build up.
_WAITING, _BUSY, _QUIET = 100_000_000, 250_000_000, 1_000_000_000


class AcceptWait:
    """Records when probes are sent and when they arrive; times in nanoseconds of one clock.

    ``current`` is how long an arriving call has waited in excess of an idle server's wait. Two threads may use it if
    they take turns, and any thread may read ``current``.
    """

    def __init__(self) -> None:
        self.current = 0
        self._in_flight: deque[int] = deque()
        self._waits: deque[int] = deque(maxlen=_LATEST)
        self._least = _NOISE
        self._sent = -_QUIET

    @property
    def pause(self) -> int:
        """Nanoseconds until the next call of :meth:`wanted`."""
        return _WAITING if self.current or self._in_flight else _BUSY

    def wanted(self, now: int, *, busy: bool) -> bool:
        """Whether to send a probe; ``busy`` while calls are open."""
        if len(self._in_flight) >= _MOST:
            return False
        if self.current or self._in_flight:
            return True
        return now - self._sent >= (_BUSY if busy else _QUIET)

    def sent(self, now: int) -> None:
        """A probe leaves, later than those before."""
        self._in_flight.append(now)
        self._sent = now

    def arrived(self, sent: int, now: int) -> int | None:
        """The probe that was ``sent`` then has arrived: how long it waited, None if it was not awaited.

        Earlier probes will not arrive any more: calls arrive in order.
        """
        if sent not in self._in_flight:
            return None
        while self._in_flight.popleft() != sent:
            pass
        wait = now - sent
        self._least = min(self._least, wait)
        self._waits.append(wait)
        self.look(now)
        return wait

    def lost(self) -> None:
        """Probes in flight will not arrive."""
        self._in_flight.clear()

    def look(self, now: int) -> None:
        """Update ``current``: a probe that has not arrived has waited at least since it was sent."""
        wait = min(self._waits) if len(self._waits) == _LATEST else 0
        if self._in_flight:
            wait = max(wait, now - self._in_flight[0])
        beyond = wait - self._least
        self.current = beyond if beyond >= _NOISE else 0
