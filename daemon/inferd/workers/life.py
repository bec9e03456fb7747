"""The life of a worker, as a table; when a dead one is replaced; and what its state means for the whole.

Time is an argument, in seconds of any clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """Where a worker is. ``WAITING``: not started yet, or dead and to be replaced."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RELOADING = "reloading"
    ENDING = "ending"
    ENDED = "ended"


class Event(Enum):
    """What happens to a worker. ``DIED`` is any end that was not asked for, ``TOLD`` to end."""

    STARTED = "started"
    READY = "ready"
    RELOADING = "reloading"
    TOLD = "told"
    DIED = "died"


# What is not here can't happen, or changes nothing: a worker that is told to end may still say that it is ready.
MOVES: dict[tuple[State, Event], State] = {
    (State.WAITING, Event.STARTED): State.STARTING,
    (State.WAITING, Event.TOLD): State.ENDED,
    (State.STARTING, Event.READY): State.READY,
    (State.STARTING, Event.TOLD): State.ENDING,
    (State.STARTING, Event.DIED): State.WAITING,
    (State.READY, Event.RELOADING): State.RELOADING,
    (State.READY, Event.TOLD): State.ENDING,
    (State.READY, Event.DIED): State.WAITING,
    (State.RELOADING, Event.READY): State.READY,
    (State.RELOADING, Event.TOLD): State.ENDING,
    (State.RELOADING, Event.DIED): State.WAITING,
    (State.ENDING, Event.DIED): State.ENDED,
}

# A reload goes on beside serving.
SERVING = frozenset({State.READY, State.RELOADING})
ALIVE = frozenset({State.STARTING, State.READY, State.RELOADING, State.ENDING})

# Who has served for so long before it dies has not failed at its start.
_PROVEN = 60.0
_FIRST_REST, _LONGEST_REST = 1.0, 60.0


@dataclass(slots=True)
class Life:
    """One worker's, through all the processes that are it one after the other.

    ``generation`` numbers these. ``heard`` is when it last said that all is well, ``due`` when it may be started.
    """

    state: State = State.WAITING
    generation: int = 0
    heard: float = 0.0
    due: float = 0.0
    failures: int = 0
    _ready: float | None = None

    def see(self, event: Event, now: float) -> bool:
        """Move along :data:`MOVES`; whether that changed anything."""
        to = MOVES.get((self.state, event))
        if to is None:
            return False
        if event is Event.STARTED:
            self.generation += 1
            self._ready = None
        if event is Event.READY and self._ready is None:
            self._ready = now
        if event is Event.DIED and to is State.WAITING:
            self.due = now + self._rest(now)
        self.state, self.heard = to, now
        return True

    def _rest(self, now: float) -> float:
        """None for one that had proved itself; else twice as long each time."""
        self.failures = 0 if self._ready is not None and now - self._ready >= _PROVEN else self.failures + 1
        return min(_LONGEST_REST, _FIRST_REST * 2.0 ** (self.failures - 2)) if self.failures > 1 else 0.0

    def silent(self, now: float, limit: float) -> bool:
        """Whether it serves, and has not said for ``limit`` seconds that all is well."""
        return self.state in SERVING and now - self.heard > limit


def quorum(count: int) -> int:
    """How many of ``count`` workers have to serve for the daemon to be shown as ready, once all of them have been."""
    return (count + 1) // 2


def ready(states: Sequence[State], complete: bool) -> bool:
    """Whether the daemon is to be shown as ready. ``complete``: all workers have served at the same time before."""
    serving = sum(state in SERVING for state in states)
    return serving >= (quorum(len(states)) if complete else len(states))
