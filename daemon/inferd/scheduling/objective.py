"""How late a response may be promised, so that the responses meet objectives and deadlines."""

from dataclasses import dataclass

_STEP = 0.03
_CEILING = 0.85
_FLOOR = 0.1
# The rest of the time is for work outside the scheduler: encoding, event loop and wire.
_IN_SIGHT = 0.88
# Per cent of responses that must be in time if only deadlines say when that is.
_PERCENTILE = 99.0


@dataclass(frozen=True, slots=True)
class Objective:
    """``percentile`` per cent of responses within ``latency`` nanoseconds of the request's arrival."""

    latency: int
    percentile: float = 99.0


class LatencyBudget:
    """The ``share`` of a request's time that its forecast may take: it shrinks as forecasts prove wrong.

    A request's time, its ``limit``, is what the objective allows or, if that is less, what its deadline left on
    arrival. Forecasts come from learnt service times. What they leave out (noise, other processes, the event loop) is
    learnt here by stochastic approximation: a late response takes a step off the share, one in time gives a little
    back, in such proportion that both cancel out while half as many are late as the percentile allows.
    """

    def __init__(self, objective: Objective | None = None) -> None:
        self.objective = objective
        self.share = _CEILING
        allowed = (1 - (objective.percentile if objective is not None else _PERCENTILE) / 100) / 2
        self._gain = _STEP * allowed / (1 - allowed)

    def limit(self, since: int, deadline: int | None) -> int:
        """Nanoseconds that the response to a request that came at ``since`` may take; 0 for no limit."""
        limit = self.objective.latency if self.objective is not None else 0
        if deadline is None:
            return limit
        left = max(1, deadline - since)
        return min(limit, left) if limit else left

    def answered(self, latency: float, limit: int) -> None:
        """A run that serves a request ended ``latency`` ns after the arrival; the request had ``limit`` ns."""
        if latency > _IN_SIGHT * limit:
            self.share = max(_FLOOR, self.share * (1 - _STEP))
        else:
            self.share = min(_CEILING, self.share * (1 + self._gain))

    def abandoned(self, latency: float, limit: int) -> None:
        """A run lost its client ``latency`` ns after the arrival: it counts if the client ran out of time."""
        if latency > _IN_SIGHT * limit:
            self.answered(latency, limit)

    def admits(self, forecast: float, service_time: float, limit: int) -> bool:
        """Whether to accept a request that must wait, and whose response is forecast after ``forecast`` ns.

        If a run alone takes longer than the share, only the wait can be kept short.
        """
        return forecast <= max(self.share * limit, service_time + self.share * limit / 10)

    def tolerates(self, forecast: float, service_time: float, limit: int) -> bool:
        """Whether a request that was accepted, and has waited, is still worth running."""
        return forecast <= max((self.share + _IN_SIGHT) / 2 * limit, service_time + limit / 10)
