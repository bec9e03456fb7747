"""Sequences: requests that share a state, one in flight at a time, in the order they came.

A request that was refused, or that ended before it ran, has left the state as it was, and the
sequence goes on without it. One that was running and is not answered leaves the state in
doubt: the sequence is lost, and so is one whose first request never ran.
"""

from collections import OrderedDict
from dataclasses import dataclass

from inferd.errors import SequenceGone, SequenceLost, TooManySequences
from inferd.requests import SequenceStep
from inferd.scheduling.entry import Entry, EntryState, Sequence

# How many ids of sequences that are over are remembered, to tell "ended" from "never heard of".
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class SequenceLimits:
    """``most`` sequences alive; one that rests longer than ``idle`` nanoseconds is over."""

    most: int
    idle: int


@dataclass(frozen=True, slots=True)
class _Past:
    why: str
    lost: bool


class Sequences:
    """The live sequences of one model version."""

    def __init__(self, model: str, limits: SequenceLimits) -> None:
        self._model = model
        self._limits = limits
        self._live: dict[int | str, Sequence] = {}
        # Those at rest, the one resting longest first.
        self._resting: OrderedDict[Sequence, None] = OrderedDict()
        # Over, but a request of theirs still runs and keeps their slot.
        self._parting: set[Sequence] = set()
        self._past: OrderedDict[int | str, _Past] = OrderedDict()

    @property
    def count(self) -> int:
        """Sequences that hold a state."""
        return len(self._live) + len(self._parting)

    def check(self, step: SequenceStep, now: int) -> None:
        """Whether a request may be taken; raises SequenceGone, SequenceLost or TooManySequences."""
        sequence = self._live.get(step.id)
        if sequence is not None:
            if sequence.ending and not step.start:
                raise SequenceGone(self._model, step.id, "has ended")
        elif not step.start:
            past = self._past.get(step.id, _Past("is not known", lost=False))
            raise (SequenceLost if past.lost else SequenceGone)(self._model, step.id, past.why)
        elif self.count >= self._limits.most:
            due = self.next_expiry
            wait = self._limits.idle if due is None else max(0, due - now)
            raise TooManySequences(self._model, self._limits.most, wait / 1e9)

    def take(self, entry: Entry, step: SequenceStep, now: int) -> bool:
        """Add a request that was checked; True when nothing of its sequence is before it."""
        sequence = self._live.get(step.id)
        if sequence is None:
            sequence = self._live[step.id] = Sequence(step.id, step.owner, now)
            self._past.pop(step.id, None)
        sequence.owner, sequence.ending = step.owner, step.end
        entry.sequence = sequence
        self._resting.pop(sequence, None)
        if sequence.current is None:
            sequence.current = entry
            return True
        sequence.held.append(entry)
        entry.state = EntryState.HELD
        return False

    def proceed(self, entry: Entry, now: int) -> Entry | None:
        """``entry`` is over and the state is sound. The request that is next, None when there is none yet."""
        sequence = entry.sequence
        if sequence is None or not sequence.live:
            return None
        if sequence.current is not entry:
            sequence.held.remove(entry)
            return None
        sequence.current = sequence.held.popleft() if sequence.held else None
        if sequence.current is None:
            sequence.used = now
            if sequence.ending:
                self._close(sequence, _Past("has ended", lost=False))
            else:
                self._resting[sequence] = None
        return sequence.current

    def lose(self, sequence: Sequence, why: str) -> list[Entry]:
        """The state is gone or in doubt. The requests that were held behind: they can't be run any more."""
        if not sequence.live:
            return []
        self._close(sequence, _Past(why, lost=True))
        orphans = list(sequence.held)
        sequence.held.clear()
        return orphans

    def part(self, sequence: Sequence) -> None:
        """The last run of a sequence that was over has ended."""
        self._parting.discard(sequence)
        sequence.current = None

    def owned(self, owner: object) -> list[Sequence]:
        """The live sequences that came over ``owner``."""
        return [s for s in self._live.values() if s.owner is owner]

    def kept_on(self, pool: int) -> list[Sequence]:
        """The live sequences that a slot of ``pool`` is kept for."""
        return [s for s in self._live.values() if s.place is not None and s.place[0] == pool]

    def leave(self, sequence: Sequence) -> None:
        """The connection a resting sequence came over is gone."""
        self._close(sequence, _Past("ended with the stream it came over", lost=False))

    @property
    def next_expiry(self) -> int | None:
        """When the sequence that rests longest times out."""
        return next(iter(self._resting)).used + self._limits.idle if self._resting else None

    def expire(self, now: int) -> list[Sequence]:
        """The sequences that have timed out by ``now``."""
        over = []
        while (due := self.next_expiry) is not None and due <= now:
            sequence = next(iter(self._resting))
            self._close(sequence, _Past(f"timed out after {self._limits.idle / 1e9:g} s without a request", lost=False))
            over.append(sequence)
        return over

    def _close(self, sequence: Sequence, past: _Past) -> None:
        sequence.live = False
        sequence.carried = None
        del self._live[sequence.id]
        self._resting.pop(sequence, None)
        if sequence.current is not None and sequence.current.run is not None:
            self._parting.add(sequence)
        self._past[sequence.id] = past
        if len(self._past) > _REMEMBERED:
            self._past.popitem(last=False)
