"""The state of the daemon at one moment: the one record that series, status page, ``inferd top`` and workers read.

Each field declares how it is merged over workers, see :mod:`inferd.merging`. Times are seconds; ``at`` and ``started``
are of one monotonic clock.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from inferd.merging import (
    COUNTS,
    MAX,
    MAX_COUNTS,
    NONEMPTY,
    RECORD,
    RECORDS_BY_DEVICE,
    SUM,
    TOTAL,
    TOTAL_COUNTS,
    TOTAL_RECORD,
)
from inferd.metrics.process_usage import ProcessUsage
from inferd.scheduling.queue_state import QueueState

# A model's name and a version's number.
VersionKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class DeviceSnapshot:
    """How one model version runs on one device; asked for, and as read back. ``device`` is as it was asked for."""

    device: str
    execution_devices: str
    precision: str
    from_cache: bool
    streams: int = field(metadata=SUM)
    streams_requested: int = field(metadata=SUM)
    threads: int = field(metadata=SUM)
    threads_requested: int = field(metadata=SUM)
    infer_requests: int = field(metadata=SUM)
    max_batch_rows: int = field(metadata=MAX)
    inline: int = field(metadata=SUM)
    compile_seconds: float = field(metadata=MAX)
    warm_up_seconds: float = field(metadata=MAX)
    first_run_seconds: float = field(metadata=MAX)


@dataclass(frozen=True, slots=True)
class TuningSnapshot:
    """Tunings of one model version that ended, by decision; seconds spent; the last gain, 0 if unknown; one line about
    the last decision or what the tuner does now, empty for none; and the tuner's phase, such as "searching"."""

    active: bool = field(metadata=MAX)
    decisions: Mapping[str, int] = field(metadata=COUNTS)
    seconds: float = field(metadata=SUM)
    gain: float = field(metadata=MAX)
    text: str = field(metadata=NONEMPTY)
    phase: str = field(default="", metadata=NONEMPTY)


@dataclass(frozen=True, slots=True)
class ObjectiveSnapshot:
    """``latency`` in seconds that ``percentile`` (such as 99.0) of the answers may take, and the same as a ratio, both
    None for no such objective; and the part of the requests that is to be answered."""

    latency: float | None = field(metadata=MAX)
    latency_ratio: float | None = field(metadata=MAX)
    availability_ratio: float = field(metadata=MAX)
    percentile: float


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Requests that ended, since the start.

    ``counts`` holds the answers whose latency fell into each bucket of ``bounds``, not cumulative, and in one more the
    answers above the last bound; ``seconds`` is their sum. ``outcomes`` counts requests by outcome, "ok" among them,
    and ``over_quota`` those of "overloaded" that exceeded a client's quota; ``rows`` counts the inferences of the
    answered ones.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    seconds: float
    outcomes: Mapping[str, int]
    rows: int
    over_quota: int = 0

    def combined(self, others: Sequence["RequestCounts"]) -> "RequestCounts":
        """With what ``others`` have counted, in these bounds."""
        counts, outcomes = list(self.counts), Counter(self.outcomes)
        for other in others:
            outcomes.update(other.outcomes)
            for bound, count in zip((*other.bounds, float("inf")), other.counts, strict=True):
                # Where the bounds differ, because an objective has just changed, each count goes where its upper bound
                # is.
                counts[bisect_left(self.bounds, bound)] += count
        return replace(
            self,
            counts=tuple(counts),
            seconds=sum((other.seconds for other in others), self.seconds),
            outcomes=dict(outcomes),
            rows=sum((other.rows for other in others), self.rows),
            over_quota=sum((other.over_quota for other in others), self.over_quota),
        )


@dataclass(frozen=True, slots=True)
class VersionSnapshot:
    """One model version, its state as RepositoryIndex answers it. ``desired`` unless it was unloaded on purpose.

    ``queue``, ``load_seconds`` and ``objective`` are None, and ``devices`` empty, where it does not answer;
    ``sequences_limit`` is None where it takes none, ``tuning`` where there is nothing to tune.
    """

    model: str
    version: str
    state: str
    reason: str
    requests: RequestCounts = field(metadata=TOTAL_RECORD)
    desired: bool = True
    queue: QueueState | None = field(default=None, metadata=RECORD)
    sequences_limit: int | None = field(default=None, metadata=SUM)
    load_seconds: float | None = field(default=None, metadata=MAX)
    objective: ObjectiveSnapshot | None = None
    devices: tuple[DeviceSnapshot, ...] = field(default=(), metadata=RECORDS_BY_DEVICE)
    tuning: TuningSnapshot | None = field(default=None, metadata=RECORD)

    @property
    def key(self) -> VersionKey:
        return self.model, self.version

    @property
    def answers(self) -> bool:
        """Whether it takes requests."""
        return self.queue is not None


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """The server at ``at``. ``phase`` and ``ready`` say whether it takes requests, ``version`` and ``openvino`` are of
    the build. ``other`` counts requests that named no model of ours, by outcome; ``open_calls`` inference RPCs;
    ``ignored_parameters`` those of requests that inferd does not know.

    ``loads`` are attempts by (model, result), ``rollbacks`` by (model, version, reason); ``unready`` is what keeps
    loaded versions from being ready. ``hung`` runs and ``replaced`` infer requests are by (model, version, device).
    Versions that are gone keep their counters for a while: ``busy`` seconds of infer requests and ``tunings`` too.
    """

    at: float
    started: float
    phase: str
    version: str
    openvino: str
    process: ProcessUsage = field(metadata=TOTAL_RECORD)
    versions: tuple[VersionSnapshot, ...] = ()
    ready: bool = field(default=False, metadata=MAX)
    open_calls: int = field(default=0, metadata=SUM)
    ignored_parameters: int = field(default=0, metadata=TOTAL)
    other: Mapping[str, int] = field(default_factory=dict, metadata=TOTAL_COUNTS)
    loads: Mapping[tuple[str, str], int] = field(default_factory=dict, metadata=TOTAL_COUNTS)
    cache_lookups: Mapping[str, int] = field(default_factory=dict, metadata=TOTAL_COUNTS)
    reloads: Mapping[str, int] = field(default_factory=dict, metadata=MAX_COUNTS)
    rollbacks: Mapping[tuple[str, str, str], int] = field(default_factory=dict, metadata=TOTAL_COUNTS)
    unready: Mapping[VersionKey, str] = field(default_factory=dict)
    hung: Mapping[tuple[str, str, str], int] = field(default_factory=dict, metadata=TOTAL_COUNTS)
    replaced: Mapping[tuple[str, str, str], int] = field(default_factory=dict, metadata=TOTAL_COUNTS)
    busy: Mapping[VersionKey, float] = field(default_factory=dict, metadata=TOTAL_COUNTS)
    tunings: Mapping[VersionKey, TuningSnapshot] = field(default_factory=dict)
