"""How many rows to run together: as many as make the model faster and keep the objective."""

from dataclasses import dataclass

from inferd.scheduling.service_time import ServiceTimes

# A larger run must give this much more throughput to be worth its longer time.
_WORTHWHILE = 1.03
# Once in this many choices the next larger size is tried, so that a bad measurement is not believed for ever;
# more often while nothing is known of it, for example when warm-up was skipped.
_TRY_EVERY = 200
_TRY_UNKNOWN_EVERY = 10


@dataclass(frozen=True, slots=True)
class BatchRule:
    """``max_rows`` in a batch, 1 for no batching; ``max_delay`` ns that a request may wait to fill one;
    ``preferred`` sizes, ascending, that runs have if enough rows wait."""

    max_rows: int = 1
    max_delay: int = 0
    preferred: tuple[int, ...] = ()


class BatchSize:
    """Chooses the size of the next run from learnt times."""

    def __init__(self, rule: BatchRule) -> None:
        self.rule = rule
        self._choices = 0

    def usual(self, times: ServiceTimes) -> int:
        """The size of runs while more than enough rows wait: the base of every forecast."""
        most = self.rule.max_rows
        return most if most == 1 else self._most_throughput(times, most, None)

    def choose(self, times: ServiceTimes, waiting: int, free_slots: int, room: float | None) -> int:
        """Rows to run now, of ``waiting`` that may form a batch, with ``free_slots`` to share them.

        ``room`` is how long the run may take, in ns, for its first request to meet the objective.
        """
        limit = min(self.rule.max_rows, -(-waiting // max(1, free_slots)))
        if limit <= 1:
            return 1
        size = self._most_throughput(times, limit, room)
        self._choices += 1
        larger = min(limit, 2 * size)
        every = _TRY_EVERY if larger in times.sizes else _TRY_UNKNOWN_EVERY
        if self._choices % every == 0 and (not room or times.expected(larger) <= room):
            size = larger
        return max((p for p in self.rule.preferred if p <= size), default=size)

    def wait_to_fill(self, times: ServiceTimes, waiting: int, since: int, room: float | None) -> int | None:
        """Until when ``waiting`` rows, the first of which came at ``since``, may wait to fill a batch; None to run them
        now."""
        rule = self.rule
        if not rule.max_delay or waiting >= self.usual(times) or waiting in rule.preferred:
            return None
        delay = float(rule.max_delay)
        if room is not None:
            delay = min(delay, room - times.expected(min(rule.max_rows, 2 * waiting)))
        return since + int(delay) if delay > 0 else None

    def _most_throughput(self, times: ServiceTimes, limit: int, room: float | None) -> int:
        """The smallest size that is about as good as the best; all rows if nothing is known."""
        if limit == 1 or not times.sizes:
            return limit
        best, rate = 1, 1 / times.expected(1)
        for size in sorted({*(s for s in times.sizes if 1 < s < limit), limit}):
            duration = times.expected(size)
            if room is not None and duration > room:
                break
            if size / duration > rate * _WORTHWHILE:
                best, rate = size, size / duration
        return best
