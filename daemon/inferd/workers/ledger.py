"""Keeps what workers have counted when they are gone.

A counter that is summed over processes would fall when one of them is replaced, and what reads it takes that for a
restart: it would count all that the others have as new.
"""

from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Said = TypeVar("Said")


class Ledger(Generic[Key, Said]):
    """What each that is present said last, by key, in :attr:`parts`; and of all that are gone, in :attr:`departed`.

    ``fold`` adds what one said last to what those before it have left, None for nothing; ``dropped`` gives what one
    that is present has said before and says no more, which is kept likewise.
    """

    def __init__(
        self, fold: Callable[[Said | None, Said], Said], dropped: Callable[[Said, Said], Said | None] = lambda *_: None
    ) -> None:
        self.parts: dict[Key, Said] = {}
        self.departed: Said | None = None
        self._fold = fold
        self._dropped = dropped

    def take(self, said: Mapping[Key, Said], present: Collection[Key]) -> None:
        """Take what those in ``said`` say now; who is not ``present`` any more has departed.

        Whoever is present and says nothing counts with what it said last.
        """
        for key in [key for key in self.parts if key not in present]:
            self.departed = self._fold(self.departed, self.parts.pop(key))
        for key, one in said.items():
            if key not in present:
                continue
            before = self.parts.get(key)
            if before is not None and (gone := self._dropped(before, one)):
                self.departed = self._fold(self.departed, gone)
            self.parts[key] = one
