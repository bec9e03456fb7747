"""How long calls wait in gRPC before inferd sees them, by probes: calls that inferd makes to itself.

gRPC hands over one call at a time, in the order they came, and keeps the others where no deadline, priority or
forecast of ours reaches them. What a probe has waited, the calls around it have waited too.
"""

from collections import deque

# A call that waits less has waited for no other: waking late by so much is what any busy machine does. ns.
_NOISE = 1_000_000
# The wait is the least of so many probes: what queues shows in each of them, a hiccup in one.
_LATEST = 3
# As many may be on their way; the oldest of them says enough of a queue that long.
_MOST = 64
# Nanoseconds between two probes: where calls wait, where none is seen to, and where none is open. A probe costs as much
# as a call, and without open calls no queue can build up.
_WAITING, _BUSY, _QUIET = 100_000_000, 250_000_000, 1_000_000_000


class AcceptWait:
    """Told when probes are sent and when they arrive; times in nanoseconds of one clock.

    ``current`` is how long a call that arrives now has waited beyond what it does on an idle server. Two threads may
    use it if they take turns, and any may read ``current``.
    """

    def __init__(self) -> None:
        self.current = 0
        self._in_flight: deque[int] = deque()
        self._waits: deque[int] = deque(maxlen=_LATEST)
        self._least = _NOISE
        self._sent = -_QUIET

    @property
    def pause(self) -> int:
        """Nanoseconds until it is to be asked again whether a probe is wanted."""
        return _WAITING if self.current or self._in_flight else _BUSY

    def wanted(self, now: int, *, busy: bool) -> bool:
        """Whether to send a probe; ``busy`` where calls are open."""
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
        """The probe that was ``sent`` then is here: what it has waited, None where it is not one of those awaited.

        Those sent before it will not come any more: calls arrive in order.
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
        """What is in flight will not arrive."""
        self._in_flight.clear()

    def look(self, now: int) -> None:
        """Bring ``current`` up to date: a probe that has not arrived has waited since it was sent, at least."""
        wait = min(self._waits) if len(self._waits) == _LATEST else 0
        if self._in_flight:
            wait = max(wait, now - self._in_flight[0])
        beyond = wait - self._least
        self.current = beyond if beyond >= _NOISE else 0
