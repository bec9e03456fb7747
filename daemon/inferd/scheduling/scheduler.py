"""The scheduler of one model version: a bounded line in front of one or more pools.

A pure core. Requests come in by :meth:`Scheduler.submit`, leave by completion, cancel or
deadline, and :meth:`Scheduler.poll` says what to do now: what to start where, who has
expired, which running work lost its client, and when to look again. Times are integers
of one clock that only the caller knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from inferd.errors import DeadlinePassed, QueueFull
from inferd.requests import Request
from inferd.scheduling.entry import Entry, EntryState
from inferd.scheduling.pool_state import PoolState
from inferd.scheduling.queue import WaitingLine


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the waiting line."""

    max_length: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Start:
    """Run ``request`` on ``slot`` of ``pool``, now."""

    request: Request
    pool: int
    slot: int


@dataclass(frozen=True, slots=True)
class Expired:
    """Answer ``request`` DEADLINE_EXCEEDED, now; ``stage`` is where it was."""

    request: Request
    stage: str


@dataclass(slots=True)
class Plan:
    """What to do now, in this order: answer the expired, cancel the abandoned, start the rest."""

    expired: list[Expired] = field(default_factory=list)
    cancels: list[tuple[int, int]] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    wake_at: int | None = None


class Scheduler:
    """Who runs next, and where; see the module's text."""

    def __init__(self, model: str, limits: Limits, slots: Sequence[int]) -> None:
        self._model = model
        self._limits = limits
        self._pools = [PoolState(n) for n in slots]
        self._line = WaitingLine()
        self._entries: dict[Request, Entry] = {}
        self._occupants: dict[tuple[int, int], Entry] = {}
        # The heap outlives what it names, so it names by number: an ended request must not stay in memory.
        self._deadlines: list[tuple[int, int]] = []
        self._timed: dict[int, Entry] = {}
        self._cancels: list[tuple[int, int]] = []
        self._arrivals = 0

    # -- what happened ------------------------------------------------------------

    def seed(self, pool: int, service_time: float) -> None:
        """A measured service time of ``pool``, in nanoseconds, before any request ran."""
        self._pools[pool].service_time = service_time

    def submit(self, request: Request, now: int) -> None:
        """Put ``request`` in line. Raises DeadlinePassed or QueueFull and then holds nothing of it."""
        if request.deadline is not None and request.deadline <= now:
            raise DeadlinePassed(self._model, "being received")
        # What could start at once left the line at the last poll, so the limits only bind a real wait.
        if self._line.length >= self._limits.max_length:
            raise QueueFull(self._model, f"{self._limits.max_length} requests waiting", self.backlog_seconds())
        if self._line.length and self._line.nbytes + request.nbytes > self._limits.max_bytes:
            raise QueueFull(self._model, f"{self._limits.max_bytes} bytes waiting", self.backlog_seconds())
        entry = Entry(request, self._arrivals)
        self._arrivals += 1
        self._entries[request] = entry
        self._line.append(entry)
        if request.deadline is not None:
            self._timed[entry.sequence] = entry
            heappush(self._deadlines, (request.deadline, entry.sequence))

    def cancel(self, request: Request) -> bool:
        """The client is gone. False when the request has already ended; else it counts as ended now."""
        entry = self._entries.get(request)
        if entry is None:
            return False
        self._forget(entry)
        self._withdraw(entry)
        return True

    def finished(self, pool: int, slot: int, now: int, learn: bool = True) -> Request | None:
        """``slot`` came back. The request to answer, or None when its client no longer waits."""
        entry = self._occupants.pop((pool, slot))
        abandoned = entry.state is EntryState.ABANDONED
        entry.move(EntryState.ENDED)
        # Cancelled work ends early: its duration says nothing about the model.
        self._pools[pool].release(slot, now, learn and not abandoned)
        if abandoned:
            return None
        self._forget(entry)
        return entry.request

    # -- what to do ---------------------------------------------------------------

    def poll(self, now: int) -> Plan:
        """What to do at ``now``. The plan is carried out by then: its starts hold their slots."""
        plan = Plan()
        self._expire(now, plan)
        plan.cancels, self._cancels = self._cancels, []
        self._fill(now, plan)
        if self._deadlines:
            first = self._deadlines[0][0]
            plan.wake_at = first if plan.wake_at is None else min(plan.wake_at, first)
        return plan

    def _expire(self, now: int, plan: Plan) -> None:
        heap = self._deadlines
        while heap and (heap[0][0] <= now or heap[0][1] not in self._timed):
            entry = self._timed.get(heappop(heap)[1])
            if entry is None:
                continue
            self._forget(entry)
            stage = "waiting in the queue" if entry.state is EntryState.WAITING else "running"
            plan.expired.append(Expired(entry.request, stage))
            self._withdraw(entry)
        # Ended requests leave their deadline behind; keep those fewer than the living.
        if len(heap) > 2 * len(self._timed) + 64:
            heap[:] = [item for item in heap if item[1] in self._timed]
            heapify(heap)

    def _forget(self, entry: Entry) -> None:
        """The request counts as ended; its infer request may still run."""
        del self._entries[entry.request]
        self._timed.pop(entry.sequence, None)

    def _withdraw(self, entry: Entry) -> None:
        if entry.state is EntryState.WAITING:
            entry.move(EntryState.ENDED)
            self._line.drop(entry)
        else:
            entry.move(EntryState.ABANDONED)
            self._cancels.append((entry.pool, entry.slot))

    def _fill(self, now: int, plan: Plan) -> None:
        """Give each free slot the first request that would finish there soonest.

        Pools are taken from the fastest on. The requests at the head of the line are left
        to faster pools as far as those will be done with them before this pool would be,
        so a slow device only gets what the fast one could not finish first.
        """
        order = sorted(range(len(self._pools)), key=lambda i: self._pools[i].service_time)
        for rank, index in enumerate(order):
            pool = self._pools[index]
            while pool.free and self._line.length:
                spoken_for = sum(self._pools[i].completions_within(pool.service_time, now) for i in order[:rank])
                if spoken_for >= self._line.length:
                    again = now + max(1, int(pool.service_time))
                    plan.wake_at = again if plan.wake_at is None else min(plan.wake_at, again)
                    break
                entry = self._line.take(spoken_for)
                entry.pool, entry.slot = index, pool.occupy(now)
                entry.move(EntryState.RUNNING)
                self._occupants[index, entry.slot] = entry
                plan.starts.append(Start(entry.request, index, entry.slot))

    # -- what is known ------------------------------------------------------------

    def requests(self) -> list[Request]:
        """Every request that has not ended, in order of arrival."""
        return list(self._entries)

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return self._line.length

    @property
    def running(self) -> int:
        """Slots in use, abandoned work included."""
        return len(self._occupants)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._entries and not self._occupants

    def backlog_seconds(self) -> float:
        """Expected time until everything now in line has started, in seconds."""
        rate = sum(p.slots / p.service_time for p in self._pools if p.service_time)
        return self._line.length / rate / 1e9 if rate else 0.0
