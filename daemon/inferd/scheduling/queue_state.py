"""What a scheduler has to do at one moment, as others may see it."""

from dataclasses import dataclass, field

from inferd.merging import MAX, SUM


@dataclass(frozen=True, slots=True)
class QueueState:
    """Requests that have not started, their bytes and the age of the first in seconds, 0 for none; requests that have
    not ended, and how many may be in flight; infer requests in use; and sequences that hold a state."""

    waiting: int = field(default=0, metadata=SUM)
    waiting_bytes: int = field(default=0, metadata=SUM)
    oldest: float = field(default=0.0, metadata=MAX)
    in_flight: int = field(default=0, metadata=SUM)
    limit: int = field(default=0, metadata=SUM)
    running: int = field(default=0, metadata=SUM)
    sequences: int = field(default=0, metadata=SUM)
