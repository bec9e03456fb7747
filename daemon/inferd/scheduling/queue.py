"""The waiting line: by priority, and within one by when an answer is due."""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Hashable, Iterator
from itertools import chain, islice

from inferd.scheduling.entry import Entry

# Whoever waited through this many starts of better priority goes next, so that none waits for ever.
PATIENCE = 64
# A look from another thread finds the line changed under it now and then, hardly twice in a row.
_LOOKS = 5

# An entry with what it is sorted by: when it is due, and among equals the order they came in.
_Place = tuple[int, int, Entry]


class WaitingLine:
    """Waiting entries in the order they should start, with their rows.

    What leaves is forgotten at once, wherever it stood, and so is a level nobody waits
    at: a request holds its inputs and clients choose the levels, so neither may pile up.
    """

    def __init__(self) -> None:
        self._levels: list[int] = []
        # Sorted lists: most entries come last and leave first, and moving a thousand pointers is quicker than a tree.
        self._lines: dict[int, list[_Place]] = {}
        self._rows: dict[int, int] = {}
        self._kinds: Counter[Hashable] = Counter()
        self._passed_over = 0
        self.length = 0

    def append(self, entry: Entry) -> None:
        """Take the place in the entry's level that is its by when it is due."""
        line = self._lines.get(entry.level)
        if line is None:
            line = self._lines[entry.level] = []
            self._rows[entry.level] = 0
            insort(self._levels, entry.level)
        insort(line, (entry.due, entry.arrival, entry))
        self._count(entry, 1)

    def drop(self, entry: Entry) -> None:
        """Remove ``entry`` wherever it stands."""
        level = entry.level
        line = self._lines[level]
        del line[bisect_left(line, (entry.due, entry.arrival))]
        self._count(entry, -1)
        if not line:
            del self._lines[level]
            del self._rows[level]
            del self._levels[bisect_left(self._levels, level)]

    def first(self, position: int = 0) -> Entry:
        """The entry at ``position`` of the order, which is by level but for the one whose patience has ended."""
        if not position and self._passed_over >= PATIENCE and len(self._levels) > 1:
            return min((line[0][2] for line in self._lines.values()), key=lambda e: e.arrival)
        if not position:
            return self._lines[self._levels[0]][0][2]
        return next(islice(self, position, None))

    def started(self, entry: Entry) -> None:
        """``entry`` leaves the line to run."""
        self.drop(entry)
        waited_behind = bool(self._levels) and entry.level < self._levels[-1]
        self._passed_over = self._passed_over + 1 if waited_behind else 0

    def last(self) -> Entry:
        """The latest of the least important: who goes when room must be made."""
        return self._lines[self._levels[-1]][-1][2]

    def rows(self, kind: Hashable) -> int:
        """Rows that wait and may run together with others of ``kind``."""
        return self._kinds[kind]

    def rows_ahead(self, level: int, due: int) -> float:
        """Rows that wait and would start before a newcomer at ``level`` that is ``due`` then.

        Within its own level that is an estimate where requests have different numbers of rows: of so many of them.
        """
        ahead = 0.0
        for other in self._levels:
            if other > level:
                break
            if other == level:
                line = self._lines[level]
                return ahead + self._rows[level] * bisect_left(line, (due + 1,)) / len(line)
            ahead += self._rows[other]
        return ahead

    @property
    def oldest(self) -> int:
        """When the first to come of those in line came, 0 for none.

        May be asked on another thread than the line's own, and is then as good as 0 where the line keeps changing.
        """
        for _ in range(_LOOKS):
            try:
                lines = tuple(self._lines.values())
            except RuntimeError:
                continue
            return min((entry.since for line in lines for _, _, entry in tuple(line)), default=0)
        return 0

    def __iter__(self) -> Iterator[Entry]:
        return (entry for _, _, entry in chain.from_iterable(self._lines[level] for level in self._levels))

    def _count(self, entry: Entry, sign: int) -> None:
        rows = sign * entry.request.batch
        self.length += sign
        self._rows[entry.level] += rows
        kind = entry.request.kind
        if kind is not None and not entry.alone:
            self._kinds[kind] += rows
            if not self._kinds[kind]:
                del self._kinds[kind]
