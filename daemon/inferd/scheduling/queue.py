"""The waiting line: by priority, first come first served within one."""

from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator
from itertools import chain, islice

from inferd.scheduling.entry import Entry

# Whoever waited through this many starts of better priority goes next, so that none waits for ever.
PATIENCE = 64
# A look from another thread finds the line changed under it now and then, hardly twice in a row.
_LOOKS = 5


class WaitingLine:
    """Waiting entries in the order they should start, with their rows.

    What leaves is forgotten at once, wherever it stood, and so is a level nobody waits
    at: a request holds its inputs and clients choose the levels, so neither may pile up.
    """

    def __init__(self) -> None:
        self._levels: list[int] = []
        # OrderedDict for its linked list: a plain dict's front gets slower with each entry taken from it.
        self._lines: dict[int, OrderedDict[Entry, None]] = {}
        self._rows: dict[int, int] = {}
        self._kinds: Counter[Hashable] = Counter()
        self._passed_over = 0
        self.length = 0

    def append(self, entry: Entry) -> None:
        """Join the end of the entry's level."""
        self._line(entry.level)[entry] = None
        self._count(entry, 1)

    def restore(self, entry: Entry) -> None:
        """Back to the front of its level: it had been taken, and has to start once more."""
        line = self._line(entry.level)
        line[entry] = None
        line.move_to_end(entry, last=False)
        self._count(entry, 1)

    def drop(self, entry: Entry) -> None:
        """Remove ``entry`` wherever it stands."""
        level = entry.level
        line = self._lines[level]
        del line[entry]
        self._count(entry, -1)
        if not line:
            del self._lines[level]
            del self._rows[level]
            del self._levels[bisect_left(self._levels, level)]

    def first(self, position: int = 0) -> Entry:
        """The entry at ``position`` of the order, which is by level but for the one whose patience has ended."""
        if not position and self._passed_over >= PATIENCE and len(self._levels) > 1:
            return min((next(iter(line)) for line in self._lines.values()), key=lambda e: e.arrival)
        if not position:
            return next(iter(self._lines[self._levels[0]]))
        return next(islice(self, position, None))

    def started(self, entry: Entry) -> None:
        """``entry`` leaves the line to run."""
        self.drop(entry)
        waited_behind = bool(self._levels) and entry.level < self._levels[-1]
        self._passed_over = self._passed_over + 1 if waited_behind else 0

    def last(self) -> Entry:
        """The latest of the least important: who goes when room must be made."""
        return next(reversed(self._lines[self._levels[-1]]))

    def rows(self, kind: Hashable) -> int:
        """Rows that wait and may run together with others of ``kind``."""
        return self._kinds[kind]

    def rows_ahead(self, level: int) -> int:
        """Rows that wait and would start before a newcomer at ``level``."""
        ahead = 0
        for other in self._levels:
            if other > level:
                break
            ahead += self._rows[other]
        return ahead

    @property
    def oldest(self) -> int:
        """When the first to come of those in line came, 0 for none.

        May be asked on another thread than the line's own, and is then as good as 0 where the line keeps changing.
        """
        for _ in range(_LOOKS):
            try:
                return min((next(iter(line)).since for line in tuple(self._lines.values())), default=0)
            except (RuntimeError, StopIteration):
                continue
        return 0

    def __iter__(self) -> Iterator[Entry]:
        return chain.from_iterable(self._lines[level] for level in self._levels)

    def _line(self, level: int) -> "OrderedDict[Entry, None]":
        line = self._lines.get(level)
        if line is None:
            line = self._lines[level] = OrderedDict()
            self._rows[level] = 0
            insort(self._levels, level)
        return line

    def _count(self, entry: Entry, sign: int) -> None:
        rows = sign * entry.request.batch
        self.length += sign
        self._rows[entry.level] += rows
        kind = entry.request.kind
        if kind is not None and not entry.alone:
            self._kinds[kind] += rows
            if not self._kinds[kind]:
                del self._kinds[kind]
