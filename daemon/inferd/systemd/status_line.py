"""How many models are served, as the line that ``systemctl status`` shows; a roll-over reads it again."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from inferd.lifecycle import ModelState

_LINE = re.compile(r"serving (\d+) of (\d+) models?(?:, loading (\d+))?")


@dataclass(frozen=True, slots=True)
class StatusLine:
    """Model versions that answer, those that should, and those that load."""

    serving: int
    wanted: int
    loading: int

    @classmethod
    def of(cls, wanted: Iterable[ModelState]) -> Self:
        """Counted from the states of the versions that should answer."""
        states = list(wanted)
        return cls(states.count(ModelState.READY), len(states), states.count(ModelState.LOADING))

    @classmethod
    def read(cls, line: str) -> Self | None:
        """Parses what ``str`` wrote; None for any other line."""
        found = _LINE.fullmatch(line)
        return None if found is None else cls(*(int(n or 0) for n in found.groups()))

    def __str__(self) -> str:
        loading = f", loading {self.loading}" if self.loading else ""
        return f"serving {self.serving} of {self.wanted} model{'' if self.wanted == 1 else 's'}{loading}"
