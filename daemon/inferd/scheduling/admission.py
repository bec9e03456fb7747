"""Which requests to accept, and then to start: those whose responses will be in time.

Here an objective and a client's deadline are the same, a limit on the time from a request's arrival to its response.
They differ in the error of a refused request, and in that a request is never accepted if even the fastest run would
miss its deadline.
"""

from inferd.errors import DeadlinePassed, InferdError, Overloaded, Shed, SustainedOverload
from inferd.scheduling.entry import Entry
from inferd.scheduling.forecast import Forecast
from inferd.scheduling.objective import LatencyBudget, Objective
from inferd.scheduling.offered_load import OfferedLoad
from inferd.scheduling.pool_state import PoolState

# Requests run in the order in which they are due. Those without a limit count as having this much time, and none is
# overtaken for longer than the longest of these.
_UNLIMITED_NS = 1_000_000_000
_LONGEST_NS = 10_000_000_000
# A deadline of fewer runs than this is too short for the wait to be what made its response late.
_RUNS = 2

_TOO_LITTLE_LEFT = "waiting in the queue, with too little time left to run"


class Admission:
    """Admission to the queue in front of ``pools``, those not disabled, by the ``forecast`` of that queue."""

    def __init__(self, model: str, objective: Objective | None, *, forecast: Forecast, pools: list[PoolState]) -> None:
        self._model = model
        self._objective = objective
        self._forecast = forecast
        self._pools = pools
        self._load = OfferedLoad()
        self.budget = LatencyBudget(objective)

    def arrived(self, entry: Entry, now: int) -> None:
        """Count the entry as offered load; set its limit and when it is due."""
        entry.limit = self.budget.limit(entry.since, entry.request.deadline)
        self.offered(entry.request.rows, entry.limit, now)
        self._hold(entry, now)

    def offered(self, rows: int, limit: int, now: int) -> None:
        """A request of ``rows`` with ``limit`` ns, 0 for no limit, has arrived."""
        if limit:
            self._load.came(rows, limit, self._forecast.rate(), self._forecast.turnaround(), now)
        else:
            self._load.came_without_limit(rows)

    def place(self, entry: Entry, now: int) -> None:
        """As :meth:`arrived`, without counting the entry."""
        entry.limit = self.budget.limit(entry.since, entry.request.deadline)
        self._hold(entry, now)

    def _hold(self, entry: Entry, now: int) -> None:
        entry.held_to = entry.limit or _UNLIMITED_NS
        if self._load.overloaded:
            entry.held_to = self._load.held_to(entry.held_to, self._forecast.turnaround(), now)
        entry.due = entry.since + min(entry.held_to, _LONGEST_NS)

    def ready(self, entry: Entry, now: int) -> None:
        """The earlier requests of the sequence of ``entry`` are over: it is due as if it had arrived now."""
        entry.due = now + min(entry.held_to, _LONGEST_NS)
        if entry.request.deadline is not None:
            entry.due = min(entry.due, entry.request.deadline)

    def refusal(self, entry: Entry, now: int) -> InferdError | None:
        """Why a newcomer is not accepted, None to accept it.

        A sequence is accepted or refused as a whole: a request in its middle is refused only if its deadline is
        out of reach.
        """
        request, deadline = entry.request, entry.request.deadline
        within = request.step is not None and not request.step.start
        if not entry.limit or (deadline is None and within):
            return None
        wait = self._forecast.wait(entry, now)
        fastest = min([p.fastest(request.rows, now) for p in self._pools], default=0.0)
        if deadline is not None and now + fastest > deadline:
            return self._too_late(deadline, wait + fastest, now)
        # A request that could start at once is never refused: if a run exceeds the limit, serving still beats refusing.
        if within or not wait:
            return None
        service_time = self._forecast.turnaround()
        forecast = now - entry.since + wait + service_time
        if not self.budget.admits(forecast, service_time, entry.limit):
            if deadline is not None and self._by_deadline(entry):
                return self._too_late(deadline, wait + service_time, now)
            return Overloaded(self._model, forecast / 1e9, entry.limit / 1e9, retry_after=self.until_room(forecast))
        if not self.budget.admits(forecast, service_time, entry.held_to):
            held_to = self.budget.share * entry.held_to
            return SustainedOverload(
                self._model, forecast / 1e9, held_to / 1e9, retry_after=max(forecast - held_to, service_time) / 1e9
            )
        return None

    def late_refusal(self, entry: Entry, pool: PoolState, now: int) -> InferdError | None:
        """Why a queued request should no longer start on ``pool``, None to start it."""
        deadline, rows = entry.request.deadline, entry.request.rows
        if pool.is_stale(rows, now):
            return None
        if deadline is not None and now + pool.times.fastest(rows) > deadline:
            return DeadlinePassed(self._model, _TOO_LITTLE_LEFT, "queue")
        # Sequences were accepted as a whole: a gap would hurt them more than a late response.
        if not entry.limit or entry.sequence is not None:
            return None
        service_time = pool.times.expected(rows)
        forecast = now - entry.since + service_time
        if self.budget.tolerates(forecast, service_time, entry.limit):
            return None
        if self._by_deadline(entry):
            return DeadlinePassed(self._model, _TOO_LITTLE_LEFT, "queue")
        return Shed(self._model, forecast / 1e9, entry.limit / 1e9, retry_after=self.until_room(forecast))

    def answered(self, limit: int, latency: int, rows: int) -> None:
        """A client's request with a limit of ``limit`` ns was answered ``latency`` ns after its arrival."""
        if self._teaches(limit, rows):
            self.budget.answered(latency, limit)

    def abandoned(self, entry: Entry, now: int) -> None:
        """The client of ``entry`` no longer waits for the run that it is part of."""
        if self._teaches(entry.limit, entry.request.rows):
            self.budget.abandoned(now - entry.since, entry.limit)

    def until_room(self, forecast: float) -> float:
        """Seconds until the queue is short enough to accept a request, if no other comes first."""
        if self._objective is None:
            return 0.0
        allowed = self.budget.share * self._objective.latency
        return max(forecast - allowed, self._forecast.turnaround()) / 1e9

    def in_flight_limit(self, slots: int, most_waiting: int) -> int:
        """How many requests may be in flight now: the learnt limit, otherwise the capacity of slots and queue."""
        rate = self._forecast.rate()
        if self._objective is None or not rate:
            return slots + most_waiting
        room = max(0.0, self.budget.share * self._objective.latency - self._forecast.turnaround())
        return slots + min(most_waiting, int(room * rate))

    def _teaches(self, limit: int, rows: int) -> bool:
        if self._objective is not None and limit == self._objective.latency:
            return True
        return limit >= _RUNS * min([p.times.expected(rows) for p in self._pools], default=0.0) and limit > 0

    def _by_deadline(self, entry: Entry) -> bool:
        """Whether the deadline, rather than the objective, is what leaves so little time."""
        return self._objective is None or entry.limit < self._objective.latency

    def _too_late(self, deadline: int, takes: float, now: int) -> DeadlinePassed:
        left = (deadline - now) / 1e6
        what = f"refused: {left:.1f} ms are left, a response takes {takes / 1e6:.1f} ms"
        return DeadlinePassed(self._model, what, "forecast")
