"""A request inside the scheduler, and its states."""

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from inferd.requests import Request
from inferd.tensors import Tensor

# Requests without a priority come after every request with one.
UNSET_PRIORITY = 1 << 64


class EntryState(Enum):
    """HELD: behind an earlier request of its sequence. ABANDONED: its client was answered or has left, but the run that
    it is part of continues."""

    HELD = "held"
    WAITING = "waiting"
    RUNNING = "running"
    ABANDONED = "abandoned"
    ENDED = "ended"

    # Enum's own hash is a Python function, which would slow down every table lookup.
    __hash__ = object.__hash__


# If a run of several members fails, each goes back to WAITING, to be tried alone.
TRANSITIONS: dict[EntryState, frozenset[EntryState]] = {
    EntryState.HELD: frozenset({EntryState.WAITING, EntryState.ENDED}),
    EntryState.WAITING: frozenset({EntryState.RUNNING, EntryState.ENDED}),
    EntryState.RUNNING: frozenset({EntryState.ABANDONED, EntryState.WAITING, EntryState.ENDED}),
    EntryState.ABANDONED: frozenset({EntryState.ENDED}),
    EntryState.ENDED: frozenset(),
}


@dataclass(slots=True, eq=False)
class Entry:
    """One request and its place: ``arrival`` is its order of arrival, ``since`` when it reached
    the server, ``rows`` its part of the run, None if it has the run to itself. An ``alone`` entry is
    never batched. ``held`` is when it began to wait to fill a batch, 0 if it never did. ``level`` is its priority as
    an order: lower goes first. ``limit`` is how many ns after ``since`` its response is due, 0 for no limit;
    ``held_to`` is the limit for its forecast, and ``due`` orders the entries of a level."""

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
        """Enter the state ``to``; a transition outside the table is a bug."""
        if to not in TRANSITIONS[self.state]:
            raise AssertionError(f"a {self.state.value} request can't become {to.value}")
        self.state = to


@dataclass(slots=True, eq=False)
class Run:
    """The work on a slot: one entry or a batch of several, in the order of their rows; ``rows`` is their sum."""

    pool: int
    slot: int
    members: tuple[Entry, ...]
    rows: int

    @property
    def abandoned(self) -> bool:
        """Whether no client waits for it any more."""
        return all(m.state is EntryState.ABANDONED for m in self.members)


@dataclass(slots=True, eq=False)
class SequenceState:
    """Requests of one ``client`` that share a state and run one after another: ``current`` is queued or running, the
    others are held behind it. ``ending`` once the last request accepted ends it, ``live`` until it is over.

    ``place`` is the slot reserved for it if the model itself holds the state; ``carried`` are the
    state tensors after its last run if the server does, None before the first.
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
