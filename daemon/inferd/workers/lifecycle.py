"""The lifecycle of a worker as a table of transitions, when to replace a dead one, and when the daemon is ready.

Time is an argument, in seconds of any clock.
"""

from dataclasses import dataclass
from enum import Enum


class WorkerState(Enum):
    """The state of a worker. ``WAITING``: not started yet, or dead and to be replaced."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RELOADING = "reloading"
    ENDING = "ending"
    ENDED = "ended"


class WorkerEvent(Enum):
    """An event in a worker's life. ``DIED`` is any unexpected end, ``STOP`` is the request to end."""

    STARTED = "started"
    READY = "ready"
    RELOADING = "reloading"
    STOP = "stop"
    DIED = "died"


# Missing entries can't happen, or change nothing: for example, a worker told to end may still report ready.
TRANSITIONS: dict[tuple[WorkerState, WorkerEvent], WorkerState] = {
    (WorkerState.WAITING, WorkerEvent.STARTED): WorkerState.STARTING,
    (WorkerState.WAITING, WorkerEvent.STOP): WorkerState.ENDED,
    (WorkerState.STARTING, WorkerEvent.READY): WorkerState.READY,
    (WorkerState.STARTING, WorkerEvent.STOP): WorkerState.ENDING,
    (WorkerState.STARTING, WorkerEvent.DIED): WorkerState.WAITING,
    (WorkerState.READY, WorkerEvent.RELOADING): WorkerState.RELOADING,
    (WorkerState.READY, WorkerEvent.STOP): WorkerState.ENDING,
    (WorkerState.READY, WorkerEvent.DIED): WorkerState.WAITING,
    (WorkerState.RELOADING, WorkerEvent.READY): WorkerState.READY,
    (WorkerState.RELOADING, WorkerEvent.STOP): WorkerState.ENDING,
    (WorkerState.RELOADING, WorkerEvent.DIED): WorkerState.WAITING,
    (WorkerState.ENDING, WorkerEvent.DIED): WorkerState.ENDED,
}

# A worker serves while it reloads.
SERVING = frozenset({WorkerState.READY, WorkerState.RELOADING})
ALIVE = frozenset({WorkerState.STARTING, WorkerState.READY, WorkerState.RELOADING, WorkerState.ENDING})

# A worker reports in every second while its event loop turns. One that has not for so long, in seconds, serves nothing.
_HUNG = 3.0
# A worker that has served for this long, in seconds, has not failed at its start.
_PROVEN = 60.0
_FIRST_DELAY, _MAX_DELAY = 1.0, 60.0


@dataclass(slots=True)
class WorkerLifecycle:
    """The lifecycle of one worker, across the processes that replace each other.

    ``generation`` numbers these processes. ``last_heard`` is when the worker last reported in, ``start_due`` when it
    may be started.
    """

    state: WorkerState = WorkerState.WAITING
    generation: int = 0
    last_heard: float = 0.0
    start_due: float = 0.0
    failures: int = 0
    _ready: float | None = None

    def apply(self, event: WorkerEvent, now: float) -> bool:
        """Move along :data:`TRANSITIONS`; returns whether that changed anything."""
        to = TRANSITIONS.get((self.state, event))
        if to is None:
            return False
        if event is WorkerEvent.STARTED:
            self.generation += 1
            self._ready = None
        if event is WorkerEvent.READY and self._ready is None:
            self._ready = now
        if event is WorkerEvent.DIED and to is WorkerState.WAITING:
            self.start_due = now + self._restart_delay(now)
        self.state, self.last_heard = to, now
        return True

    def _restart_delay(self, now: float) -> float:
        """No delay after a worker that had proved itself; otherwise doubled each time."""
        self.failures = 0 if self._ready is not None and now - self._ready >= _PROVEN else self.failures + 1
        return min(_MAX_DELAY, _FIRST_DELAY * 2.0 ** (self.failures - 2)) if self.failures > 1 else 0.0

    def is_silent(self, now: float, limit: float) -> bool:
        """Whether it serves, but has not reported in for ``limit`` seconds."""
        return self.state in SERVING and now - self.last_heard > limit

    def is_serving(self, now: float) -> bool:
        """Whether it serves and does not hang."""
        return self.state in SERVING and not self.is_silent(now, _HUNG)

    def forgive(self, seconds: float) -> None:
        """Take ``seconds`` in which nothing could be heard, as while the whole daemon was stopped, for no silence."""
        self.last_heard += seconds


def quorum(count: int) -> int:
    """How many of ``count`` workers must serve for the daemon to be ready, once all of them have been."""
    return (count + 1) // 2


def is_ready(serving: int, count: int, complete: bool) -> bool:
    """Whether the daemon is ready with ``serving`` of ``count`` workers. ``complete``: all have served at the same time
    before."""
    return serving >= (quorum(count) if complete else count)
