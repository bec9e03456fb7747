"""Takes the snapshot that metrics and status page show; on any thread, and without a lock that requests wait for."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from inferd import __version__
from inferd.catalog.catalog import Catalog
from inferd.catalog.index import IndexEntry
from inferd.deployment.deployment import Deployment
from inferd.deployment.model_version import ModelVersion
from inferd.disclosure import without_host_paths
from inferd.engine.model import LoadedPool
from inferd.engine.runtime import version as openvino_version
from inferd.engine.state import most_sequences
from inferd.errors import QuotaExceeded
from inferd.lifecycle import Lifecycle, ModelState
from inferd.metrics.instruments import OTHER
from inferd.metrics.process_usage import ProcessUsage
from inferd.metrics.recorder import Recorder, VersionCounters
from inferd.metrics.snapshot import (
    DeviceSnapshot,
    ObjectiveSnapshot,
    RequestCounts,
    ServerSnapshot,
    TuningSnapshot,
    VersionKey,
    VersionSnapshot,
)
from inferd.metrics.statistics import Statistics
from inferd.supervision.monitor import HealthMonitor
from inferd.tuner.record import TuningDecision, TuningPhase, TuningRecord
from inferd.tuner.tuner import Tuner

_QUIET = (TuningPhase.UNTUNABLE, TuningPhase.SETTLED, TuningPhase.WANTED)


@dataclass(frozen=True, slots=True)
class ModelSources:
    """The parts that know how the models do."""

    catalog: Catalog
    tuner: Tuner
    health: HealthMonitor


@dataclass(frozen=True, slots=True)
class CountSources:
    """What was counted: requests by ``recorder``, inference RPCs that are open, parameters of requests that were
    ignored, reloads by result, and looks into the cache of compiled models by result."""

    recorder: Recorder
    open_calls: Callable[[], int]
    ignored_parameters: Callable[[], int]
    reloads: Mapping[str, int]
    cache_lookups: Mapping[str, int]


class Snapshotter:
    """The daemon as it is at the moment of asking."""

    def __init__(self, lifecycle: Lifecycle, models: ModelSources, counts: CountSources) -> None:
        self._lifecycle = lifecycle
        self._catalog, self._tuner, self._health = models.catalog, models.tuner, models.health
        self._counts, self._recorder = counts, counts.recorder
        self._started = time.monotonic()

    def readiness(self) -> tuple[bool, str]:
        """Whether the daemon takes requests; its phase, and a line for each model that does not answer."""
        lines = [self._lifecycle.phase.value]
        lines += [
            f"{e.name} {e.version}: {e.state.value} {e.reason}".rstrip()
            for e in self._catalog.index()
            if e.state is not ModelState.READY
        ]
        return self._lifecycle.accepts, "\n".join(lines)

    def snapshot(self) -> ServerSnapshot:
        """All that is shown of it."""
        serving = {_key(model_version): deployment for model_version, deployment in self._catalog.serving()}
        entries = [e for e in self._catalog.index() if e.desired or (e.name, e.version) in serving]
        counted = self._recorder.counted()
        known = {(entry.name, entry.version) for entry in entries if entry.desired} | counted
        names = {name for name, _ in known}
        tunings = self._tunings()
        # Zero for those that answer until the monitor comes to them: a count that begins at one is none to Prometheus.
        none = {
            (*key, one.device): 0 for key, deployment in serving.items() for one in deployment.dispatcher.device_stats
        }
        return ServerSnapshot(
            at=time.monotonic(),
            started=self._started,
            phase=self._lifecycle.phase.value,
            version=__version__,
            openvino=openvino_version(),
            process=ProcessUsage.read(),
            versions=tuple(self._version(entry, serving, tunings) for entry in entries),
            ready=self._lifecycle.accepts,
            open_calls=self._counts.open_calls(),
            ignored_parameters=self._counts.ignored_parameters(),
            other=_outcomes(self._recorder.counters(OTHER, "")),
            loads={key: n for key, n in self._catalog.loads.copy().items() if key[0] in names},
            cache_lookups=dict(self._counts.cache_lookups),
            reloads=dict(self._counts.reloads),
            rollbacks={key: n for key, n in self._catalog.rollbacks.copy().items() if key[0] in names},
            unready={key: why for key, why in self._health.unready_reasons.items() if key in known},
            hung=none | {place: n for place, n in self._health.hung.copy().items() if place[:2] in known},
            replaced=none | {place: n for place, n in self._health.replaced.copy().items() if place[:2] in known},
            busy={key: ns / 1e9 for key, ns in self._catalog.busy_ns().items() if key in counted},
            tunings={key: tuning for key, tuning in tunings.items() if key in counted},
        )

    def devices(self) -> set[str]:
        """Those that models run on."""
        return {pool.pool.device for _, deployment in self._catalog.loaded() for pool in deployment.loaded.pools}

    def statistics(self) -> Iterable[tuple[str, str, Statistics, int | None]]:
        """Of each version that counts: name, version, what was counted of it, and how many requests wait, None where
        it does not answer any more."""
        deployment = {
            _key(model_version): deployment.dispatcher for model_version, deployment in self._catalog.serving()
        }
        for name, version in sorted(key for key in self._recorder.counted() | deployment.keys() if key[1]):
            dispatcher = deployment.get((name, version))
            waiting = dispatcher.scheduler.waiting if dispatcher is not None else None
            yield name, version, self._recorder.statistics(name, version), waiting

    def _tunings(self) -> dict[VersionKey, TuningSnapshot]:
        return {
            (record.source.name, str(record.source.version)): TuningSnapshot(
                active=record.phase not in _QUIET,
                decisions={decision.value: record.decisions[decision] for decision in TuningDecision},
                seconds=record.seconds,
                gain=record.gain,
                text=without_host_paths(_tuning_text(record)),
                phase=record.phase.value,
            )
            for record in self._tuner.records.all()
            if record.phase is not TuningPhase.UNTUNABLE
        }

    def _version(
        self,
        entry: IndexEntry,
        serving: Mapping[VersionKey, Deployment],
        tunings: Mapping[VersionKey, TuningSnapshot],
    ) -> VersionSnapshot:
        key = entry.name, entry.version
        version = VersionSnapshot(
            model=entry.name,
            version=entry.version,
            state=entry.state.value,
            reason=entry.reason,
            requests=_requests(self._recorder.counters(*key)),
            desired=entry.desired,
            tuning=tunings.get(key),
        )
        deployment = serving.get(key)
        return version if deployment is None else _answering(version, deployment)


def _tuning_text(record: TuningRecord) -> str:
    status = record.status
    if status.phase is TuningPhase.SETTLED and not status.status_text:
        return ""
    return f"{status.phase.value}: {status.status_text}" if status.status_text else status.phase.value


def _key(model_version: ModelVersion) -> VersionKey:
    return model_version.name, str(model_version.version)


def _answering(version: VersionSnapshot, deployment: Deployment) -> VersionSnapshot:
    """``version`` with what there is of it while it answers."""
    config, objective = deployment.config, deployment.config.objective
    return replace(
        version,
        queue=deployment.dispatcher.scheduler.queue_state(time.monotonic_ns()),
        sequences_limit=most_sequences(config, deployment.signature) if deployment.signature.in_sequences else None,
        load_seconds=deployment.loaded.seconds,
        objective=ObjectiveSnapshot(
            latency=objective.latency_slo,
            # 99.9 / 100 is 0.9990000000000001.
            latency_ratio=None if objective.latency_slo is None else round(objective.percentile / 100, 9),
            availability_ratio=round(objective.availability / 100, 9),
            percentile=objective.percentile,
        ),
        devices=tuple(_device(deployment, pool) for pool in deployment.loaded.pools),
    )


def _device(deployment: Deployment, pool: LoadedPool) -> DeviceSnapshot:
    effective, execution = pool.effective, deployment.config.execution
    return DeviceSnapshot(
        device=pool.pool.device,
        execution_devices=",".join(effective.execution_devices),
        precision=effective.precision,
        from_cache=pool.from_cache,
        streams=effective.streams,
        streams_requested=execution.streams,
        threads=effective.threads,
        threads_requested=execution.threads,
        infer_requests=pool.pool.width,
        max_batch_rows=deployment.max_batch_rows,
        inline=pool.pool.inline,
        compile_seconds=pool.timings.compiling,
        warm_up_seconds=pool.timings.warm_up,
        first_run_seconds=pool.timings.first_run,
    )


def _requests(counters: VersionCounters) -> RequestCounts:
    answered = counters.answered
    return RequestCounts(
        bounds=answered.bounds,
        counts=tuple(answered.counts),
        seconds=answered.total / 1e9,
        outcomes=_outcomes(counters),
        rows=counters.inferences,
        over_quota=sum(n for (_, _, why), n in counters.requests.copy().items() if why == QuotaExceeded.reason),
    )


def _outcomes(counters: VersionCounters) -> dict[str, int]:
    outcomes: Counter[str] = Counter()
    for (_, outcome, _), number in counters.requests.copy().items():
        outcomes[outcome] += number
    return dict(outcomes)
