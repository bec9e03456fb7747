"""A request inside the scheduler, and the states it may be in."""

from dataclasses import dataclass
from enum import Enum

from inferd.requests import Request

# Requests without a priority come after every one that asked for a level.
UNSET_PRIORITY = 1 << 64


class EntryState(Enum):
    """ABANDONED: the client was answered or is gone, and the infer request still runs."""

    WAITING = "waiting"
    RUNNING = "running"
    ABANDONED = "abandoned"
    ENDED = "ended"


TRANSITIONS: dict[EntryState, frozenset[EntryState]] = {
    EntryState.WAITING: frozenset({EntryState.RUNNING, EntryState.ENDED}),
    EntryState.RUNNING: frozenset({EntryState.ABANDONED, EntryState.ENDED}),
    EntryState.ABANDONED: frozenset({EntryState.ENDED}),
    EntryState.ENDED: frozenset(),
}


@dataclass(slots=True, eq=False)
class Entry:
    """One request with its place in line; ``sequence`` is the order of arrival."""

    request: Request
    sequence: int
    state: EntryState = EntryState.WAITING
    pool: int = -1
    slot: int = -1

    @property
    def level(self) -> int:
        """The priority as an order: lower goes first."""
        return self.request.priority or UNSET_PRIORITY

    def move(self, to: EntryState) -> None:
        """Enter ``to``; a transition outside the table is a bug."""
        if to not in TRANSITIONS[self.state]:
            raise AssertionError(f"a {self.state.value} request can't become {to.value}")
        self.state = to
