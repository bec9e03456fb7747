"""A scheduler's load at one moment."""

from dataclasses import dataclass, field

from inferd.merging import MAX, SUM


@dataclass(frozen=True, slots=True)
class QueueState:
    """Requests waiting to start, their bytes and the age of the oldest in seconds, 0 for none; requests in flight and
    their limit; infer requests in use; and live sequences."""

    waiting: int = field(default=0, metadata=SUM)
    waiting_bytes: int = field(default=0, metadata=SUM)
    oldest: float = field(default=0.0, metadata=MAX)
    in_flight: int = field(default=0, metadata=SUM)
    limit: int = field(default=0, metadata=SUM)
    running: int = field(default=0, metadata=SUM)
    sequences: int = field(default=0, metadata=SUM)
