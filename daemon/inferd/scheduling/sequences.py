"""Sequences: requests that share a state, one in flight at a time, in the order they came.

A request that was refused, or that ended before it ran, leaves the state unchanged, and the
sequence goes on without it. A request that was running but gets no response leaves the state in
doubt: the sequence is lost. A sequence whose first request never ran is lost, too.

A sequence belongs to one client: another client that uses the same id means another sequence, and learns nothing about
this one. No client can take all places.
"""

from collections import Counter, OrderedDict
from dataclasses import dataclass

from inferd.errors import SequenceGone, SequenceLost, TooManySequences
from inferd.fair_share import fair_share
from inferd.requests import SequenceStep
from inferd.scheduling.entry import Entry, EntryState, SequenceState

# How many ended sequences are remembered, to tell "ended" from "never heard of".
_REMEMBERED = 4096

# The client, and its id for the sequence.
_Key = tuple[str, int | str]


@dataclass(frozen=True, slots=True)
class SequenceLimits:
    """At most ``most`` live sequences; one that rests longer than ``idle`` nanoseconds is over."""

    most: int
    idle: int


@dataclass(frozen=True, slots=True)
class _Past:
    why: str
    lost: bool


_UNKNOWN = _Past("is not known", lost=False)


class _Memory:
    """How sequences ended, for the last ``most`` of them; the client with the most entries forgets first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._by_client: dict[str, OrderedDict[int | str, _Past]] = {}

    def of(self, key: _Key) -> _Past:
        client, name = key
        theirs = self._by_client.get(client)
        return _UNKNOWN if theirs is None else theirs.get(name, _UNKNOWN)

    def keep(self, key: _Key, past: _Past) -> None:
        """Remember a sequence that is over."""
        client, name = key
        self._by_client.setdefault(client, OrderedDict())[name] = past
        self._count += 1
        if self._count > self._most:
            client = max(self._by_client, key=lambda c: len(self._by_client[c]))
            self.forget((client, next(iter(self._by_client[client]))))

    def forget(self, key: _Key) -> None:
        """Harmless if it is not remembered."""
        client, name = key
        theirs = self._by_client.get(client)
        if theirs is None or theirs.pop(name, None) is None:
            return
        self._count -= 1
        if not theirs:
            del self._by_client[client]


class Sequences:
    """The live sequences of one model version, each known by its client and the id that the client gave it.

    A client with a name leaves places to others: see :func:`inferd.fair_share.fair_share`. The client "" stands for
    all clients that can't be told apart.
    """

    def __init__(self, model: str, limits: SequenceLimits) -> None:
        self._model = model
        self._limits = limits
        self._live: dict[_Key, SequenceState] = {}
        # Sequences at rest, the one resting longest first.
        self._resting: OrderedDict[SequenceState, None] = OrderedDict()
        # Sequences that are over, but a running request still keeps their slot.
        self._parting: set[SequenceState] = set()
        # How many live and parting sequences each client has.
        self._held: Counter[str] = Counter()
        self._past = _Memory(_REMEMBERED)

    @property
    def count(self) -> int:
        """Live sequences."""
        return len(self._live) + len(self._parting)

    def check(self, step: SequenceStep, now: int) -> None:
        """Raises SequenceGone, SequenceLost or TooManySequences unless the request may be accepted."""
        sequence = self._live.get((step.client, step.id))
        if sequence is not None:
            if sequence.ending and not step.start:
                raise SequenceGone(self._model, step.id, "has ended")
        elif not step.start:
            past = self._past.of((step.client, step.id))
            raise (SequenceLost if past.lost else SequenceGone)(self._model, step.id, past.why)
        else:
            self._check_room(step.client, now)

    def _check_room(self, client: str, now: int) -> None:
        held, most = self._held[client], self._limits.most
        full = self.count >= most
        if not full and (not client or held < fair_share(most, self.count - held)):
            return
        # What would make room: for a client at its share, only the end of one of its own.
        resting = (s for s in self._resting if full or s.client == client)
        due = next((s.used + self._limits.idle for s in resting), now + self._limits.idle)
        raise TooManySequences(self._model, most, max(0, due - now) / 1e9, held=None if full else held)

    def take(self, entry: Entry, step: SequenceStep, now: int) -> bool:
        """Add a checked request; True if no request of its sequence is ahead of it."""
        key = step.client, step.id
        sequence = self._live.get(key)
        if sequence is None:
            sequence = self._live[key] = SequenceState(step.client, step.id, step.owner, now)
            self._held[step.client] += 1
            self._past.forget(key)
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
        """``entry`` is over and the state is sound. Returns the next request, None if there is none yet."""
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

    def lose(self, sequence: SequenceState, why: str) -> list[Entry]:
        """The state is lost or in doubt. Returns the requests held behind, which can't run any more."""
        if not sequence.live:
            return []
        self._close(sequence, _Past(why, lost=True))
        orphans = list(sequence.held)
        sequence.held.clear()
        return orphans

    def part(self, sequence: SequenceState) -> None:
        """The last run of a sequence that was over has ended."""
        if sequence in self._parting:
            self._parting.remove(sequence)
            self._let_go(sequence.client)
        sequence.current = None

    def owned(self, owner: object) -> list[SequenceState]:
        """The live sequences that came over the connection ``owner``."""
        return [s for s in self._live.values() if s.owner is owner]

    def kept_on(self, pool: int) -> list[SequenceState]:
        """The live sequences that have a slot of ``pool``."""
        return [s for s in self._live.values() if s.place is not None and s.place[0] == pool]

    def leave(self, sequence: SequenceState) -> None:
        """The connection of a resting sequence is closed."""
        self._close(sequence, _Past("ended with its stream", lost=False))

    @property
    def next_expiry(self) -> int | None:
        """When the sequence that rests longest times out."""
        return next(iter(self._resting)).used + self._limits.idle if self._resting else None

    def expire(self, now: int) -> list[SequenceState]:
        """The sequences that have timed out by ``now``."""
        over = []
        while (due := self.next_expiry) is not None and due <= now:
            sequence = next(iter(self._resting))
            self._close(sequence, _Past(f"timed out after {self._limits.idle / 1e9:g} s without a request", lost=False))
            over.append(sequence)
        return over

    def _close(self, sequence: SequenceState, past: _Past) -> None:
        sequence.live = False
        sequence.carried = None
        key = sequence.client, sequence.id
        del self._live[key]
        self._resting.pop(sequence, None)
        if sequence.current is not None and sequence.current.run is not None:
            self._parting.add(sequence)
        else:
            self._let_go(sequence.client)
        self._past.keep(key, past)

    def _let_go(self, client: str) -> None:
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
