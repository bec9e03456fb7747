"""The waiting line: by priority, first come first served within one."""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, islice

from inferd.scheduling.entry import Entry


class WaitingLine:
    """Waiting entries in the order they should start, with their count and bytes.

    What leaves is forgotten at once, wherever it stood, and so is a level nobody waits
    at: a request holds its inputs and clients choose the levels, so neither may pile up.
    """

    def __init__(self) -> None:
        self._levels: list[int] = []
        # OrderedDict for its linked list: a plain dict's front gets slower with each entry taken from it.
        self._lines: dict[int, OrderedDict[Entry, None]] = {}
        self.length = 0
        self.nbytes = 0

    def append(self, entry: Entry) -> None:
        line = self._lines.get(entry.level)
        if line is None:
            line = self._lines[entry.level] = OrderedDict()
            insort(self._levels, entry.level)
        line[entry] = None
        self.length += 1
        self.nbytes += entry.request.nbytes

    def take(self, position: int = 0) -> Entry:
        """Remove and return the entry at ``position`` of the order."""
        entry = next(islice(self, position, None))
        self.drop(entry)
        return entry

    def drop(self, entry: Entry) -> None:
        """Remove ``entry`` wherever it stands."""
        line = self._lines[entry.level]
        del line[entry]
        if not line:
            del self._lines[entry.level]
            del self._levels[bisect_left(self._levels, entry.level)]
        self.length -= 1
        self.nbytes -= entry.request.nbytes

    def __iter__(self) -> Iterator[Entry]:
        return chain.from_iterable(self._lines[level] for level in self._levels)
