"""What the scheduler knows of one pool of infer requests: free slots and how fast they are."""

from dataclasses import dataclass, field

_SMOOTHING = 0.1


@dataclass(slots=True)
class PoolState:
    """Slots of one pool and the learnt service time, nanoseconds from start to completion.

    A pool nobody has measured yet has service time 0, so it is tried first.
    """

    slots: int
    service_time: float = 0.0
    free: list[int] = field(default_factory=list)
    running: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.free = list(range(self.slots - 1, -1, -1))

    def occupy(self, now: int) -> int:
        """Take the most recently used free slot: its tensors are the warmest."""
        slot = self.free.pop()
        self.running[slot] = now
        return slot

    def release(self, slot: int, now: int, learn: bool) -> None:
        """Give ``slot`` back; ``learn`` says whether its duration tells anything about the model."""
        duration = now - self.running.pop(slot)
        self.free.append(slot)
        if learn and self.service_time:
            self.service_time += _SMOOTHING * (duration - self.service_time)
        elif learn:
            self.service_time = float(duration)

    def completions_within(self, horizon: float, now: int) -> int:
        """How many more requests the busy slots are expected to finish within ``horizon`` ns.

        Only what could start there counts, so a slot's present work does not. A slot that
        is overdue is expected to take as long again as it is late: a hung one soon
        promises nothing.
        """
        if not self.service_time:
            return 0
        total = 0
        for started in self.running.values():
            remaining = abs(started + self.service_time - now)
            total += max(0, int((horizon - remaining) // self.service_time))
        return total
