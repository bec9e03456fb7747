"""A model version under load in simulated time: the real scheduler, simulated clients and devices, no clock."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random

from inferd.errors import InferdError
from inferd.requests import Request
from inferd.scheduling.scheduler import Scheduler
from tests.scheduling.work import work

MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Clients:
    """Independent clients of one kind: so many requests a second, at random times, each with ``deadline`` ns.

    What they send reaches the scheduler ``wire`` ns later, and its answer them as much later again.
    """

    name: str
    rate: float
    deadline: int | None = None
    wire: int = MS


@dataclass(slots=True)
class Outcomes:
    """The results for each kind of client: requests offered, answered, answered in time, and how late."""

    offered: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    in_time: Counter[str] = field(default_factory=Counter)
    latencies: dict[str, list[int]] = field(default_factory=dict)
    wasted: int = 0
    """Nanoseconds that slots were busy with abandoned runs."""


class Simulation:
    """``run_time`` ns a run on average, spread by ``spread`` of that; a cancelled run ends ``letting_go`` ns later."""

    def __init__(
        self,
        scheduler: Scheduler,
        run_time: int,
        seed: int,
        spread: float = 0.15,
        letting_go: int = 8 * MS,
        objective: int | None = None,
    ) -> None:
        self.run_time = run_time
        self.refused = 0
        self._scheduler = scheduler
        self._spread = spread
        self._letting_go = letting_go
        self._objective = objective
        self._random = Random(seed)
        self._events: list[tuple[int, int, str, object]] = []
        self._number = count()
        self._begun: dict[tuple[int, int], int] = {}
        self._cancelled: dict[tuple[int, int], int] = {}
        self._of: dict[Request, tuple[Clients, int]] = {}
        self._wake_at = 0
        self._results = Outcomes()

    def offer(self, clients: Sequence[Clients], start: int, end: int) -> Outcomes:
        """Let ``clients`` send from ``start`` until ``end``; returns the results for that time."""
        self._results = Outcomes()
        for one in clients:
            at = start + self._gap(one)
            while at < end:
                self._at(at + one.wire, "arrive", (one, at))
                at += self._gap(one)
        self._run(end)
        return self._results

    def _gap(self, clients: Clients) -> int:
        return max(1, int(self._random.expovariate(clients.rate) * 1e9))

    def _at(self, at: int, what: str, whom: object) -> None:
        heappush(self._events, (at, next(self._number), what, whom))

    def _run(self, until: int) -> None:
        while self._events and self._events[0][0] < until:
            now, _, what, whom = heappop(self._events)
            getattr(self, f"_{what}")(now, whom)
            self._poll(now)

    def _arrive(self, now: int, whom: tuple[Clients, int]) -> None:
        clients, sent = whom
        self._results.offered[clients.name] += 1
        request = work(None if clients.deadline is None else sent + clients.deadline, received=now)
        try:
            self._scheduler.submit(request, now)
            self._of[request] = whom
        except InferdError:
            self.refused += 1

    def _wake(self, _now: int, _whom: None) -> None:
        """A poll is due."""

    def _end(self, now: int, run: tuple[tuple[int, int], int]) -> None:
        place, begun = run
        if self._begun.get(place) != begun or self._cancelled.get(place, now) < now:
            return
        del self._begun[place]
        if place in self._cancelled:
            del self._cancelled[place]
            self._results.wasted += now - begun
        for entry in self._scheduler.finished(*place, now):
            clients, sent = self._of.pop(entry.request)
            latency = now + clients.wire - sent
            self._results.answered[clients.name] += 1
            limit = clients.deadline or self._objective
            self._results.in_time[clients.name] += limit is None or latency <= limit
            self._results.latencies.setdefault(clients.name, []).append(latency)

    def _poll(self, now: int) -> None:
        plan = self._scheduler.poll(now)
        for request, _ in plan.refused:
            del self._of[request]
            self.refused += 1
        for place in plan.cancels:
            # The scheduled end comes no earlier than this one, and is then ignored.
            self._cancelled[place] = now + self._letting_go
            self._at(now + self._letting_go, "end", (place, self._begun[place]))
        for run in plan.starts:
            place = (run.pool, run.slot)
            self._begun[place] = now
            took = self.run_time * self._random.lognormvariate(0, self._spread)
            self._at(now + int(took), "end", (place, now))
        if plan.wake_at is not None and not now < self._wake_at <= plan.wake_at:
            self._wake_at = max(now + 1, plan.wake_at)
            self._at(self._wake_at, "wake", None)
