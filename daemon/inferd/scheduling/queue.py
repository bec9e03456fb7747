"""The request queue: by priority, and within a level by when a response is due."""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Hashable, Iterator
from itertools import chain, islice

from inferd.scheduling.entry import Entry

# An entry that was passed over by this many starts of better priority goes next, so that none waits for ever.
PATIENCE = 64
# A read from another thread sometimes meets a changing queue, but hardly twice in a row.
_LOOKS = 5

# An entry with its sort key: when it is due, then its order of arrival.
_Place = tuple[int, int, Entry]


class RequestQueue:
    """Waiting entries in the order they should start, with their rows.

    An entry that leaves is forgotten at once, from any position, and so is a level without entries:
    a request holds its inputs and clients choose the levels, so neither may pile up.
    """

    def __init__(self) -> None:
        self._levels: list[int] = []
        # Sorted lists: most entries come last and leave first, and moving a thousand pointers is faster than a tree.
        self._queues: dict[int, list[_Place]] = {}
        self._rows: dict[int, int] = {}
        self._rows_by_key: Counter[Hashable] = Counter()
        self._passed_over = 0
        self.length = 0

    def append(self, entry: Entry) -> None:
        """Add the entry to its level, in the order of when it is due."""
        queue = self._queues.get(entry.level)
        if queue is None:
            queue = self._queues[entry.level] = []
            self._rows[entry.level] = 0
            insort(self._levels, entry.level)
        insort(queue, (entry.due, entry.arrival, entry))
        self._count(entry, 1)

    def drop(self, entry: Entry) -> None:
        """Remove ``entry`` from any position."""
        level = entry.level
        queue = self._queues[level]
        del queue[bisect_left(queue, (entry.due, entry.arrival))]
        self._count(entry, -1)
        if not queue:
            del self._queues[level]
            del self._rows[level]
            del self._levels[bisect_left(self._levels, level)]

    def first(self, position: int = 0) -> Entry:
        """The entry at ``position`` in the order: by level, except for the entry whose patience has run out."""
        if not position and self._passed_over >= PATIENCE and len(self._levels) > 1:
            return min((queue[0][2] for queue in self._queues.values()), key=lambda e: e.arrival)
        if not position:
            return self._queues[self._levels[0]][0][2]
        return next(islice(self, position, None))

    def started(self, entry: Entry) -> None:
        """``entry`` leaves the queue to run."""
        self.drop(entry)
        waited_behind = bool(self._levels) and entry.level < self._levels[-1]
        self._passed_over = self._passed_over + 1 if waited_behind else 0

    def last(self) -> Entry:
        """The last entry of the least important level: the one to go when room must be made."""
        return self._queues[self._levels[-1]][-1][2]

    def rows(self, key: Hashable) -> int:
        """Rows that wait and may run together with others of ``key``."""
        return self._rows_by_key[key]

    def rows_ahead(self, level: int, due: int) -> float:
        """Rows that wait and would start before a newcomer at ``level`` that is ``due`` then.

        Within its own level this is an estimate, from the number of requests, if they have different numbers of rows.
        """
        ahead = 0.0
        for other in self._levels:
            if other > level:
                break
            if other == level:
                queue = self._queues[level]
                return ahead + self._rows[level] * bisect_left(queue, (due + 1,)) / len(queue)
            ahead += self._rows[other]
        return ahead

    @property
    def oldest(self) -> int:
        """When the oldest queued request arrived, 0 for none.

        May be called on another thread than the queue's own; it may then return 0 while the queue keeps changing.
        """
        for _ in range(_LOOKS):
            try:
                queues = tuple(self._queues.values())
            except RuntimeError:
                continue
            return min((entry.since for queue in queues for _, _, entry in tuple(queue)), default=0)
        return 0

    def __iter__(self) -> Iterator[Entry]:
        return (entry for _, _, entry in chain.from_iterable(self._queues[level] for level in self._levels))

    def _count(self, entry: Entry, sign: int) -> None:
        rows = sign * entry.request.rows
        self.length += sign
        self._rows[entry.level] += rows
        key = entry.request.batch_key
        if key is not None and not entry.alone:
            self._rows_by_key[key] += rows
            if not self._rows_by_key[key]:
                del self._rows_by_key[key]
