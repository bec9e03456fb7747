"""Counts what became of requests in one window of time. Times are nanoseconds of one monotonic clock."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from inferd.bench.latencies import Latencies

OK = "OK"
UNANSWERED = "UNANSWERED"
"""The code of a request that was given up because no answer of any kind had come."""


@dataclass(frozen=True, slots=True)
class LoadWindow:
    """What was seen in a window of ``seconds``.

    Requests that were *due* in it are told by ``codes``, gRPC's names or UNANSWERED; ``latencies`` are of those
    answered OK, from when they were due, and ``in_time`` of them were within the objective. ``lags`` is how much
    later than due they left, empty in a closed loop. Answers that *came* in it are counted by ``answered``, and
    ``answered_in_time``: neither what is left over at the end nor an empty queue at the start tilts a rate.
    ``cpu`` is what the clients took, seconds, and ``busiest`` the most that one of their processes did.
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
        """What several processes saw in the same window."""
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
        """How many requests were due."""
        return sum(self.codes.values())

    @property
    def throughput(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds

    @property
    def goodput(self) -> float:
        """Answers within the objective a second."""
        return self.answered_in_time / self.seconds

    @property
    def share_in_time(self) -> float:
        """Of all that were due, the errors too; 0 where none was."""
        return self.in_time / self.due if self.due else 0.0

    @property
    def errors(self) -> dict[str, int]:
        """How many did not end as OK, by code."""
        return {code: count for code, count in self.codes.items() if code != OK}


@dataclass(slots=True)
class RequestTally:
    """Counts the requests of the window from ``opens`` to ``closes``; an answer within ``objective`` is in time.

    ``closes`` may be moved nearer while it counts, to no earlier than now.
    """

    opens: int
    closes: int
    objective: int
    answered: int = 0
    answered_in_time: int = 0
    in_time: int = 0
    failed: int = 0
    """Of all time, for the display; ``succeeded`` likewise."""
    succeeded: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    latencies: "array[int]" = field(default_factory=lambda: array("q"))
    lags: "array[int]" = field(default_factory=lambda: array("q"))

    def left(self, due: int, now: int) -> None:
        """A request of an open loop that was ``due`` is sent."""
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
        """What was counted; ``cpu`` is what the process took meanwhile, seconds."""
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
