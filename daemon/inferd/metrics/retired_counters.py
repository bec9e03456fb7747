"""Keeps what workers had counted when they ended.

A counter that is summed over processes would fall when one of them is replaced, and what reads it takes that for a
restart: it would count all that the other workers have as new.
"""

from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Report = TypeVar("Report")


class RetiredCounters(Generic[Key, Report]):
    """:attr:`parts` has the last report of each running worker, by key; :attr:`retired` the sum over ended workers.

    ``fold`` adds a last report to the sum of earlier ones (None if there are none). ``dropped`` gives the part of an
    earlier report that the worker's present report lacks; it is added to the sum, too.
    """

    def __init__(
        self,
        fold: Callable[[Report | None, Report], Report],
        dropped: Callable[[Report, Report], Report | None] = lambda *_: None,
    ) -> None:
        self.parts: dict[Key, Report] = {}
        self.retired: Report | None = None
        self._fold = fold
        self._dropped = dropped

    def update(self, reports: Mapping[Key, Report], present: Collection[Key]) -> None:
        """Take the new reports; a worker that is not ``present`` any more has ended.

        A worker that is present and does not report counts with its last report.
        """
        for key in [key for key in self.parts if key not in present]:
            self.retired = self._fold(self.retired, self.parts.pop(key))
        for key, report in reports.items():
            if key not in present:
                continue
            before = self.parts.get(key)
            if before is not None and (gone := self._dropped(before, report)):
                self.retired = self._fold(self.retired, gone)
            self.parts[key] = report
