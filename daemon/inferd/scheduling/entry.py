"""A request inside the scheduler, and the states it may be in."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from inferd.requests import Request
from inferd.tensors import Tensor

# Requests without a priority come after every one that asked for a level.
UNSET_PRIORITY = 1 << 64


class EntryState(Enum):
    """HELD: behind an earlier request of its sequence. ABANDONED: its client was answered
    or is gone, and the run it is part of goes on."""

    HELD = "held"
    WAITING = "waiting"
    RUNNING = "running"
    ABANDONED = "abandoned"
    ENDED = "ended"

    # An Enum's own is a call of a function, for each look into the table.
    __hash__ = object.__hash__


# A run that fails with several members goes back to WAITING, for each to be tried alone.
TRANSITIONS: dict[EntryState, frozenset[EntryState]] = {
    EntryState.HELD: frozenset({EntryState.WAITING, EntryState.ENDED}),
    EntryState.WAITING: frozenset({EntryState.RUNNING, EntryState.ENDED}),
    EntryState.RUNNING: frozenset({EntryState.ABANDONED, EntryState.WAITING, EntryState.ENDED}),
    EntryState.ABANDONED: frozenset({EntryState.ENDED}),
    EntryState.ENDED: frozenset(),
}


@dataclass(slots=True, eq=False)
class Entry:
    """One request with its place: ``arrival`` is the order it came in, ``since`` when it reached
    the server, ``rows`` its part of the run, None where the run is all its own. ``alone`` runs
    with no other. ``held`` is when it began to wait to fill a batch, 0 if it never did. ``level`` is the priority as an
    order: lower goes first. ``limit`` is how many ns after ``since`` its answer has to be there, 0 for any,
    ``held_to`` what its forecast is held to, and ``due`` when it is to start before others of its level."""

    request: Request
    arrival: int
    since: int
    sequence: "SequenceState | None" = None
    state: EntryState = EntryState.WAITING
    rows: range | None = None
    alone: bool = False
    held: int = 0
    run: "Run | None" = None
    level: int = field(init=False)
    limit: int = 0
    held_to: int = 0
    due: int = 0

    def __post_init__(self) -> None:
        self.level = self.request.priority or UNSET_PRIORITY

    def batches_with(self, other: "Entry") -> bool:
        """Whether the two may be in one batch."""
        key = self.request.batch_key
        return key is not None and key == other.request.batch_key and not (self.alone or other.alone)

    def move(self, to: EntryState) -> None:
        """Enter ``to``; a transition outside the table is a bug."""
        if to not in TRANSITIONS[self.state]:
            raise AssertionError(f"a {self.state.value} request can't become {to.value}")
        self.state = to


@dataclass(slots=True, eq=False)
class Run:
    """What is on a slot: one entry or a batch of several, in the order of their ``rows``, which are so many."""

    pool: int
    slot: int
    members: tuple[Entry, ...]
    rows: int

    @property
    def abandoned(self) -> bool:
        """No client waits for it any more."""
        return all(m.state is EntryState.ABANDONED for m in self.members)


@dataclass(slots=True, eq=False)
class SequenceState:
    """Requests of one ``client`` that share a state and run one after the other: ``current`` queued or running, the
    others held behind it. ``ending`` once the last request taken ends it, ``live`` until it is over.

    ``place`` is the slot kept for it where the model itself holds the state; ``carried`` are the
    state tensors after its last run, None before the first, where the server does.
    """

    client: str
    id: int | str
    owner: object | None
    used: int
    current: Entry | None = None
    held: deque[Entry] = field(default_factory=deque)
    ending: bool = False
    live: bool = True
    place: tuple[int, int] | None = None
    carried: tuple[Tensor, ...] | None = None
