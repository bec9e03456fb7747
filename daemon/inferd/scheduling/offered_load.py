"""How much is asked for, against how much can be computed, and how little time those who ask have."""

from math import exp

# Requests are counted over a second, or over the time that so many runs take where that is longer.
_WINDOW_NS = 1_000_000_000
_WINDOW_RUNS = 32
# More than capacity by so much is overload, until it is hardly more: a closed loop of clients, each of which asks again
# once it is answered, offers just as much as is computed.
_BEGINS = 1.2
_ENDS = 1.05
# The limit that one in forty requests is below: down by this part of itself at one that has less, up by a 39th of that
# at one that has more.
_STEP = 0.05
_MORE = 39
# Overload that a request has the time to sit out is a burst, but none lasts longer than this.
_BURST_NS = 10_000_000_000
# The longest queue that is of use under overload, as the time it takes to get through: it evens out chance.
_STANDING_NS = 1_000_000_000
_STANDING_RUNS = 16
# Two runs' time is the least that anything may be held to.
_LEAST_RUNS = 2


class OfferedLoad:
    """The rate at which rows come, and the shortest limit that more than a few of the requests have."""

    def __init__(self) -> None:
        self._rows = 0.0
        self._window = float(_WINDOW_NS)
        self._counted = 0
        self._short = 0.0
        self._overloaded_at: int | None = None

    @property
    def overloaded(self) -> bool:
        """Whether more is asked for than can be computed."""
        return self._overloaded_at is not None

    def came(self, rows: int, limit: int, capacity: float, service_time: float, now: int) -> None:
        """A request of ``rows`` came that has ``limit`` ns; ``capacity`` is in rows a ns, 0 for unknown."""
        if self._counted:
            self._rows *= exp(min(0, self._counted - now) / self._window)
        self._rows += rows
        self._counted = now
        # Those that have hardly the time for a run of their own can't be helped by a shorter queue.
        if limit >= _LEAST_RUNS * service_time:
            self._note(limit)
        if capacity:
            self._window = max(float(_WINDOW_NS), _WINDOW_RUNS / capacity)
            load = self._rows / self._window / capacity
            if load <= (_BEGINS if self._overloaded_at is None else _ENDS):
                self._overloaded_at = None
            elif self._overloaded_at is None:
                self._overloaded_at = now

    def came_without_limit(self, rows: int) -> None:
        """A request of ``rows`` came that may wait for ever."""
        self._rows += rows

    def held_to(self, limit: int, service_time: float, now: int) -> int:
        """What to go by in place of ``limit``: under lasting overload no request waits longer than the hurried can.

        A queue that stands all the time evens nothing out. Those with much time would fill it, and those with little
        would find it too long each time they come.
        """
        if self._overloaded_at is None or now - self._overloaded_at < min(limit, _BURST_NS):
            return limit
        standing = max(_STANDING_NS, _STANDING_RUNS * service_time)
        return min(limit, int(min(standing, max(self._short, _LEAST_RUNS * service_time))))

    def _note(self, limit: int) -> None:
        if not self._short:
            self._short = float(limit)
        elif limit < self._short:
            self._short = max(limit, self._short * (1 - _STEP))
        else:
            self._short = min(limit, self._short * (1 + _STEP / _MORE))
