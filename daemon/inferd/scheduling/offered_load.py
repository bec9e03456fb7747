"""The load offered, compared with the capacity, and the time that the most urgent requests have."""

from math import exp

# Requests are counted over a second, or over the time of this many runs if that is longer.
_WINDOW_NS = 1_000_000_000
_WINDOW_RUNS = 32
# Exceeding capacity by this factor is overload, until the excess is almost gone: a closed loop of clients, each of
# which sends again after a response, offers exactly the capacity.
_BEGINS = 1.2
_ENDS = 1.05
# Estimates the limit that one in forty requests is below: a request with less lowers it by this part of itself, one
# with more raises it by a 39th of that.
_STEP = 0.05
_MORE = 39
# Overload that a request has the time to wait out is a burst, but no burst lasts longer than this.
_BURST_NS = 10_000_000_000
# The longest useful queue under overload, as the time to work through it: it evens out chance.
_STANDING_NS = 1_000_000_000
_STANDING_RUNS = 16
# No limit is shorter than the time of two runs.
_LEAST_RUNS = 2


class OfferedLoad:
    """The rate at which rows arrive, and the shortest limit that more than a few of the requests have."""

    def __init__(self) -> None:
        self._rows = 0.0
        self._window = float(_WINDOW_NS)
        self._counted = 0
        self._short = 0.0
        self._overloaded_at: int | None = None

    @property
    def overloaded(self) -> bool:
        """Whether the offered load exceeds the capacity."""
        return self._overloaded_at is not None

    def came(self, rows: int, limit: int, capacity: float, service_time: float, now: int) -> None:
        """A request of ``rows`` with ``limit`` ns arrived; ``capacity`` is in rows a ns, 0 if unknown."""
        if self._counted:
            self._rows *= exp(min(0, self._counted - now) / self._window)
        self._rows += rows
        self._counted = now
        # A request with barely the time for its own run gains nothing from a shorter queue.
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
        """A request of ``rows`` arrived that may wait for ever."""
        self._rows += rows

    def held_to(self, limit: int, service_time: float, now: int) -> int:
        """The limit to use in place of ``limit``: under sustained overload no request waits longer than the most
        urgent ones can.

        A queue that never empties evens nothing out. Requests with much time would fill it, and those with little
        would find it too long every time.
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
