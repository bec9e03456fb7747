"""What holds at this moment, as series: states, what waits and runs, how models are set up, tuning."""

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from inferd.lifecycle import ModelState
from inferd.metrics import instruments
from inferd.metrics.families import counter, gauge, info
from inferd.metrics.instruments import Instrument


@dataclass(frozen=True, slots=True)
class DeviceState:
    """How one model version runs on one device; asked for, and as read back. ``device`` is as it was asked for."""

    device: str
    execution_devices: str
    precision: str
    from_cache: bool
    streams: int
    streams_requested: int
    threads: int
    threads_requested: int
    infer_requests: int
    max_batch_rows: int
    inline: bool
    compile_seconds: float
    warm_up_seconds: float
    first_run_seconds: float


@dataclass(frozen=True, slots=True)
class TuningState:
    """Tunings of one model version that ended, by decision; seconds spent; the last gain, 0 if unknown; and the
    last thing worth telling."""

    active: bool
    decisions: Mapping[str, int]
    seconds: float
    gain: float
    said: str


@dataclass(frozen=True, slots=True)
class VersionState:
    """One model version that answers. ``sequences_limit`` and ``latency`` (seconds) are None where it has none,
    ``tuning`` where there is nothing to tune."""

    model: str
    version: str
    queue_length: int
    queue_bytes: int
    queue_oldest: float
    in_flight: int
    limit: int
    running: int
    sequences: int
    sequences_limit: int | None
    load_seconds: float
    latency: float | None
    latency_ratio: float
    availability_ratio: float
    devices: tuple[DeviceState, ...]
    tuning: TuningState | None


@dataclass(frozen=True, slots=True)
class ServerState:
    """``models`` are (name, version, state) of all that is to be served; ``loads`` attempts by (model, result);
    ``rollbacks`` by (model, version, reason);
    ``unready`` what keeps loaded versions from being ready, by (name, version); ``hung`` runs and ``replaced`` infer
    requests by (name, version, device). Counters are also of versions that are gone, as long as they keep them:
    ``busy`` seconds of infer requests and ``tunings`` by (name, version)."""

    ready: bool
    open_calls: int
    models: tuple[tuple[str, str, ModelState], ...]
    loads: Mapping[tuple[str, str], int]
    cache_lookups: Mapping[str, int]
    reloads: Mapping[str, int]
    versions: tuple[VersionState, ...]
    unready: Mapping[tuple[str, str], str] = field(default_factory=dict)
    hung: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    replaced: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    rollbacks: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    busy: Mapping[tuple[str, str], float] = field(default_factory=dict)
    tunings: Mapping[tuple[str, str], TuningState] = field(default_factory=dict)


_OF_VERSIONS: tuple[tuple[Instrument, Callable[[VersionState], float | None]], ...] = (
    (instruments.QUEUE_LENGTH, lambda v: v.queue_length),
    (instruments.QUEUE_BYTES, lambda v: v.queue_bytes),
    (instruments.QUEUE_OLDEST, lambda v: v.queue_oldest),
    (instruments.IN_FLIGHT, lambda v: v.in_flight),
    (instruments.IN_FLIGHT_LIMIT, lambda v: v.limit),
    (instruments.INFER_REQUESTS_BUSY, lambda v: v.running),
    (instruments.SEQUENCES, lambda v: v.sequences),
    (instruments.SEQUENCES_LIMIT, lambda v: v.sequences_limit),
    (instruments.LOAD_SECONDS, lambda v: v.load_seconds),
    (instruments.OBJECTIVE_SECONDS, lambda v: v.latency),
    (instruments.OBJECTIVE_RATIO, lambda v: None if v.latency is None else v.latency_ratio),
    (instruments.AVAILABILITY_RATIO, lambda v: v.availability_ratio),
    (instruments.TUNING_ACTIVE, lambda v: None if v.tuning is None else v.tuning.active),
    (instruments.TUNING_GAIN, lambda v: None if v.tuning is None else v.tuning.gain),
)
_OF_DEVICES: tuple[tuple[Instrument, Callable[[DeviceState], float]], ...] = (
    (instruments.STREAMS, lambda d: d.streams),
    (instruments.STREAMS_REQUESTED, lambda d: d.streams_requested),
    (instruments.THREADS, lambda d: d.threads),
    (instruments.THREADS_REQUESTED, lambda d: d.threads_requested),
    (instruments.INFER_REQUESTS, lambda d: d.infer_requests),
    (instruments.MAX_BATCH_ROWS, lambda d: d.max_batch_rows),
    (instruments.INLINE, lambda d: d.inline),
    (instruments.COMPILE_SECONDS, lambda d: d.compile_seconds),
    (instruments.WARM_UP_SECONDS, lambda d: d.warm_up_seconds),
    (instruments.FIRST_INFERENCE_SECONDS, lambda d: d.first_run_seconds),
)


class StateCollector(Collector):
    """Reads the state at each scrape. ``version`` and ``openvino`` are of the build."""

    def __init__(self, read: Callable[[], ServerState], version: str, openvino: str) -> None:
        self._read = read
        self._build = (version, openvino, platform.python_version())

    def collect(self) -> Iterator[Metric]:
        server = self._read()
        yield gauge(instruments.READY, [((), server.ready)])
        yield gauge(instruments.OPEN_CALLS, [((), server.open_calls)])
        yield gauge(instruments.MODEL_READY, ((m[:2], m[2] is ModelState.READY) for m in server.models))
        states = (((*m[:2], state.value), m[2] is state) for m in server.models for state in ModelState)
        yield gauge(instruments.MODEL_STATE, states)
        yield gauge(instruments.MODEL_UNHEALTHY, (((*of, reason), 1.0) for of, reason in server.unready.items()))
        yield counter(instruments.HUNG_RUNS, server.hung.items())
        yield counter(instruments.REPLACED_REQUESTS, server.replaced.items())
        yield counter(instruments.MODEL_LOADS, server.loads.items())
        yield counter(instruments.MODEL_ROLLBACKS, server.rollbacks.items())
        yield counter(instruments.CACHE_LOOKUPS, (((result,), n) for result, n in server.cache_lookups.items()))
        yield counter(instruments.RELOADS, (((result,), n) for result, n in server.reloads.items()))
        yield info(instruments.BUILD, [self._build])
        for instrument, of_version in _OF_VERSIONS:
            values = (((v.model, v.version), of_version(v)) for v in server.versions)
            yield gauge(instrument, ((labels, value) for labels, value in values if value is not None))
        yield counter(instruments.BUSY_SECONDS, server.busy.items())
        devices = [((v.model, v.version, d.device), d) for v in server.versions for d in v.devices]
        for instrument, of_device in _OF_DEVICES:
            yield gauge(instrument, ((labels, of_device(d)) for labels, d in devices))
        facts = ((*labels, d.execution_devices, d.precision, str(d.from_cache).lower()) for labels, d in devices)
        yield info(instruments.MODEL_INFO, facts)
        tunings = server.tunings.items()
        decisions = (((*labels, decision), n) for labels, t in tunings for decision, n in t.decisions.items())
        yield counter(instruments.TUNING_DECISIONS, decisions)
        yield counter(instruments.TUNING_SECONDS, ((labels, t.seconds) for labels, t in tunings))
