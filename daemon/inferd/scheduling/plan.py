"""The scheduler's decisions at each poll."""

from collections.abc import Sequence
from dataclasses import dataclass

from inferd.errors import InferdError
from inferd.requests import Request
from inferd.scheduling.entry import Run


@dataclass(slots=True)
class Plan:
    """What to do now, in this order: answer refused requests, cancel abandoned runs, replace the slots whose
    runs still do not end, start the rest. ``given_up`` are the runs that now count as hung."""

    refused: Sequence[tuple[Request, InferdError]] = ()
    given_up: Sequence[Run] = ()
    cancels: Sequence[tuple[int, int]] = ()
    replaced: Sequence[tuple[int, int]] = ()
    starts: tuple[Run, ...] = ()
    wake_at: int | None = None

    def wake(self, at: int) -> None:
        """Poll again at ``at`` or earlier."""
        if self.wake_at is None or at < self.wake_at:
            self.wake_at = at
