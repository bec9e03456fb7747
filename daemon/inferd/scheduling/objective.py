"""How late an answer may be promised, so that those given keep the model's latency objective."""

from dataclasses import dataclass

_STEP = 0.03
_CEILING = 0.85
# What lies beyond the scheduler's sight, encoding, event loop and wire, gets the rest of the objective.
_IN_SIGHT = 0.88


@dataclass(frozen=True, slots=True)
class Objective:
    """``percentile`` per cent of the answers within ``latency`` nanoseconds of the request's arrival."""

    latency: int
    percentile: float = 99.0


class LatencyBudget:
    """The forecast up to which requests are taken: below the objective by as much as forecasts prove wrong.

    Forecasts come from learnt service times. What they leave out (noise, other processes,
    the event loop) is learnt here by stochastic approximation: an answer that came too late
    takes a step off the budget, one in time gives a little back, in such proportion that
    both cancel out while half as many are late as the percentile allows.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.nanoseconds = _CEILING * objective.latency
        allowed = (1 - objective.percentile / 100) / 2
        self._gain = _STEP * allowed / (1 - allowed)

    def answered(self, latency: float) -> None:
        """A run that answers a request ended ``latency`` nanoseconds after its arrival."""
        objective = self.objective.latency
        if latency > _IN_SIGHT * objective:
            self.nanoseconds = max(objective / 10, self.nanoseconds * (1 - _STEP))
        else:
            self.nanoseconds = min(_CEILING * objective, self.nanoseconds * (1 + self._gain))

    def admits(self, forecast: float, service_time: float) -> bool:
        """Whether to take a request that is forecast to be answered after ``forecast`` ns.

        Where a run alone takes longer than the budget, waiting is what can be kept short.
        """
        return forecast <= max(self.nanoseconds, service_time + self.nanoseconds / 10)

    def tolerates(self, forecast: float, service_time: float) -> bool:
        """Whether one that was taken, and has waited, is still worth running."""
        objective = self.objective.latency
        return forecast <= max((self.nanoseconds + _IN_SIGHT * objective) / 2, service_time + objective / 10)
