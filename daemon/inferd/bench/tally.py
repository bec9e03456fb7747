"""Counts the outcomes of requests in one window of time. Times are nanoseconds of one monotonic clock."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from inferd.bench.latencies import Latencies

OK = "OK"
UNANSWERED = "UNANSWERED"
"""The code of a request that was given up because it got no response and no error."""


@dataclass(frozen=True, slots=True)
class LoadWindow:
    """The measurements of a window of ``seconds``.

    Requests *due* in the window are counted by ``codes``, gRPC's names or UNANSWERED. ``latencies`` covers the OK
    ones, from when they were due; ``in_time`` of them met the objective. ``lags`` is how much later than due they
    left, empty in a closed loop. Responses that *arrived* in the window are counted by ``answered`` and
    ``answered_in_time``: neither requests left over at the end nor an empty queue at the start biases these rates.
    ``cpu`` is the CPU time of the clients in seconds, ``busiest`` the largest of any one process.
    """

    seconds: float
    codes: Mapping[str, int]
    answered: int
    answered_in_time: int
    in_time: int
    latencies: Latencies
    lags: Latencies
    cpu: float
    busiest: float

    @classmethod
    def merged(cls, parts: Sequence["LoadWindow"]) -> "LoadWindow":
        """The measurements of several processes in the same window."""
        codes: Counter[str] = Counter()
        for part in parts:
            codes.update(part.codes)
        return cls(
            max(p.seconds for p in parts),
            dict(sorted(codes.items())),
            sum(p.answered for p in parts),
            sum(p.answered_in_time for p in parts),
            sum(p.in_time for p in parts),
            Latencies.merged(p.latencies for p in parts),
            Latencies.merged(p.lags for p in parts),
            sum(p.cpu for p in parts),
            max(p.busiest for p in parts),
        )

    @property
    def due(self) -> int:
        """The number of requests due."""
        return sum(self.codes.values())

    @property
    def throughput(self) -> float:
        """Responses a second."""
        return self.answered / self.seconds

    @property
    def goodput(self) -> float:
        """Responses within the objective a second."""
        return self.answered_in_time / self.seconds

    @property
    def share_in_time(self) -> float:
        """Share of all requests due, errors included, that met the objective; 0 if none was due."""
        return self.in_time / self.due if self.due else 0.0

    @property
    def errors(self) -> dict[str, int]:
        """Requests that did not end as OK, by code."""
        return {code: count for code, count in self.codes.items() if code != OK}


@dataclass(slots=True)
class RequestTally:
    """Counts the requests of the window from ``opens`` to ``closes``; a response within ``objective`` is in time.

    ``closes`` may be brought forward while it counts, but not before the current time.
    """

    opens: int
    closes: int
    objective: int
    answered: int = 0
    answered_in_time: int = 0
    in_time: int = 0
    failed: int = 0
    """Over the whole run, for the display; ``succeeded`` likewise."""
    succeeded: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    latencies: "array[int]" = field(default_factory=lambda: array("q"))
    lags: "array[int]" = field(default_factory=lambda: array("q"))

    def left(self, due: int, now: int) -> None:
        """A request of an open loop that was ``due`` has left."""
        if self.opens <= due < self.closes:
            self.lags.append(now - due)

    def ended(self, due: int, now: int, code: str) -> None:
        """A request that was ``due`` has ended."""
        fine, latency = code == OK, now - due
        if fine:
            self.succeeded += 1
            if self.opens <= now < self.closes:
                self.answered += 1
                self.answered_in_time += latency <= self.objective
        else:
            self.failed += 1
        if self.opens <= due < self.closes:
            self.codes[code] += 1
            if fine:
                self.in_time += latency <= self.objective
                self.latencies.append(latency)

    def window(self, cpu: float) -> LoadWindow:
        """The counts; ``cpu`` is the process's CPU time meanwhile, in seconds."""
        return LoadWindow(
            (self.closes - self.opens) / 1e9,
            dict(self.codes),
            self.answered,
            self.answered_in_time,
            self.in_time,
            Latencies.of(self.latencies),
            Latencies.of(self.lags),
            cpu,
            cpu,
        )
