"""What the scheduler knows of one pool of infer requests: free slots and how fast they are."""

from dataclasses import dataclass, field

from inferd.scheduling.service_time import ServiceTimes

# A measurement is stale if nothing has run for this long, or for this many times the length of a run. Then a deadline
# that seemed too short is tried anyway; otherwise a model that was slow for a while would be refused for ever.
_STALE_NS = 1_000_000_000
_STALE_RUNS = 3


@dataclass(slots=True)
class PoolState:
    """Slots of one pool, and how long runs take there.

    ``width`` is how many runs are allowed at a time: all slots, unless sequences own
    slots for as long as they live. A pool that was not measured yet counts as the fastest,
    so it is tried first. A ``disabled`` pool starts nothing more, a ``paused`` one nothing for now.
    ``solo_runs`` is how many runs must first run by themselves. ``begun`` is when the last run began.
    """

    slots: int
    width: int
    times: ServiceTimes = field(default_factory=ServiceTimes)
    free: list[int] = field(default_factory=list)
    running: dict[int, int] = field(default_factory=dict)
    disabled: bool = False
    begun: int = 0
    paused: bool = False
    solo_runs: int = 0

    def __post_init__(self) -> None:
        self.free = list(range(self.slots - 1, -1, -1))

    @property
    def room(self) -> int:
        """How many runs could start now, if the slots they need are free."""
        if self.disabled or self.paused:
            return 0
        return (1 if self.solo_runs else self.width) - len(self.running)

    def occupy(self, now: int) -> int:
        """Take the most recently used free slot: its tensors are the warmest."""
        slot = self.free.pop()
        self.running[slot] = self.begun = now
        return slot

    def resume(self, slot: int, now: int) -> None:
        """Run on a slot that was kept for its sequence."""
        self.running[slot] = self.begun = now

    def release(self, slot: int, rows: int, now: int, *, learn: bool, keep: bool = False) -> None:
        """The run on ``slot`` ended; ``learn`` says whether its duration tells anything about the
        model, ``keep`` that the slot stays with its sequence."""
        duration = now - self.running.pop(slot)
        if self.solo_runs:
            self.solo_runs -= 1
        if not keep:
            self.free.append(slot)
        if learn:
            self.times.learn(rows, duration)

    def fastest(self, rows: int, now: int) -> float:
        """How long a run of ``rows`` takes at best, in ns; 0 if that is unknown or no longer known."""
        return 0.0 if self.is_stale(rows, now) else self.times.fastest(rows)

    def is_stale(self, rows: int, now: int) -> bool:
        """Whether what is known about runs of ``rows`` is so old that one should be tried anyway."""
        return not self.running and now - self.begun > max(_STALE_NS, _STALE_RUNS * self.times.fastest(rows))

    def completions_within(self, horizon: float, now: int) -> int:
        """How many more runs of one row the busy slots are expected to finish within ``horizon`` ns.

        Only runs that could start there count, so a slot's present run does not. An overdue
        slot is expected to take as long again as it is late: a hung one soon
        promises nothing.
        """
        service_time = self.times.expected(1)
        if not service_time:
            return 0
        total = 0
        for started in self.running.values():
            remaining = abs(started + service_time - now)
            total += max(0, int((horizon - remaining) // service_time))
        return total

    def next_completion(self, now: int) -> float:
        """Nanoseconds until a slot is expected to be free; 0 when one could start now."""
        if self.room > 0 or not self.running:
            return 0.0
        return max(0.0, min(self.running.values()) + self.times.expected(1) - now)
