"""Reads what metrics and status page show off the parts that know it; on any thread, and holding nobody up."""

import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from inferd import __version__
from inferd.catalog.catalog import Catalog
from inferd.catalog.index import IndexEntry
from inferd.deployment.deployment import Deployment
from inferd.deployment.model_version import ModelVersion
from inferd.disclosure import without_host_paths
from inferd.engine.model import Engine, LoadedPool
from inferd.engine.runtime import version as openvino_version
from inferd.engine.state import most_sequences
from inferd.exposition.state import DeviceState, ServerState, TuningState, VersionState
from inferd.lifecycle import Lifecycle, ModelState
from inferd.metrics.figures import DeviceFigures, ModelFigures, ServerFigures
from inferd.metrics.instruments import OTHER
from inferd.metrics.recorder import Recorder, VersionCounters
from inferd.metrics.statistics import Statistics
from inferd.supervision.monitor import HealthMonitor
from inferd.tuner.record import TuningDecision, TuningPhase, TuningRecord
from inferd.tuner.tuner import Tuner

_QUIET = (TuningPhase.UNTUNABLE, TuningPhase.SETTLED, TuningPhase.WANTED)


class Snapshotter:
    """The daemon as it is at the moment of asking. ``open_calls`` counts inference RPCs, ``reloads`` by result."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        catalog: Catalog,
        engine: Engine,
        tuner: Tuner,
        recorder: Recorder,
        open_calls: Callable[[], int],
        reloads: Mapping[str, int],
        health: HealthMonitor,
    ) -> None:
        self._lifecycle = lifecycle
        self._catalog = catalog
        self._engine = engine
        self._tuner = tuner
        self._recorder = recorder
        self._open_calls = open_calls
        self._reloads = reloads
        self._health = health
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

    def state(self) -> ServerState:
        """For the metrics."""
        wanted = self._wanted()
        counted = self._recorder.counted()
        known = {(entry.name, entry.version) for entry in wanted} | counted
        names = {name for name, _ in known}
        tunings = self._tunings()
        # Zero for those that answer until the monitor comes to them: a count that begins at one is none to Prometheus.
        none = {
            (*_key(s), one.device): 0
            for s, deployment in self._catalog.serving()
            for one in deployment.dispatcher.device_stats
        }
        return ServerState(
            ready=self._lifecycle.accepts,
            open_calls=self._open_calls(),
            models=tuple((e.name, e.version, e.state) for e in wanted),
            loads={key: n for key, n in self._catalog.loads.copy().items() if key[0] in names},
            rollbacks={key: n for key, n in self._catalog.rollbacks.copy().items() if key[0] in names},
            cache_lookups=dict(self._engine.cache_lookups),
            reloads=dict(self._reloads),
            versions=tuple(_version(s, deployment, tunings.get(_key(s))) for s, deployment in self._catalog.serving()),
            unready={key: why for key, why in self._health.unready_reasons.items() if key in known},
            hung=none | {place: n for place, n in self._health.hung.copy().items() if place[:2] in known},
            replaced=none | {place: n for place, n in self._health.replaced.copy().items() if place[:2] in known},
            busy={key: ns / 1e9 for key, ns in self._catalog.busy_ns().items() if key in counted},
            tunings={key: tuning for key, tuning in tunings.items() if key in counted},
        )

    def figures(self) -> ServerFigures:
        """For the status page."""
        deployment = {_key(model_version): deployment for model_version, deployment in self._catalog.serving()}
        tunings = self._tunings()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return ServerFigures(
            at=time.monotonic(),
            phase=self._lifecycle.phase.value,
            version=__version__,
            openvino=openvino_version(),
            started=self._started,
            rss_bytes=_resident(),
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            other=_outcomes(self._recorder.counters(OTHER, "")),
            models=tuple(self._figures(e, deployment.get((e.name, e.version)), tunings) for e in self._wanted()),
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
            waiting = dispatcher.waiting if dispatcher is not None else None
            yield name, version, self._recorder.statistics(name, version), waiting

    def _wanted(self) -> list[IndexEntry]:
        return [entry for entry in self._catalog.index() if entry.desired]

    def _tunings(self) -> dict[tuple[str, str], TuningState]:
        return {
            (record.source.name, str(record.source.version)): TuningState(
                record.phase not in _QUIET,
                {decision.value: record.decisions[decision] for decision in TuningDecision},
                record.seconds,
                record.gain,
                without_host_paths(_said(record)),
            )
            for record in self._tuner.records.all()
            if record.phase is not TuningPhase.UNTUNABLE
        }

    def _figures(
        self, entry: IndexEntry, deployment: Deployment | None, tunings: dict[tuple[str, str], TuningState]
    ) -> ModelFigures:
        record = self._recorder.counters(entry.name, entry.version)
        answered = record.answered
        dispatcher = deployment.dispatcher if deployment is not None else None
        objective = deployment.config.objective if deployment is not None else None
        tuning = tunings.get((entry.name, entry.version))
        return ModelFigures(
            model=entry.name,
            version=entry.version,
            state=entry.state.value,
            reason=entry.reason,
            bounds=answered.bounds,
            counts=tuple(answered.counts),
            seconds=answered.total / 1e9,
            outcomes=_outcomes(record),
            rows=record.inferences,
            waiting=dispatcher.waiting if dispatcher else 0,
            oldest=dispatcher.oldest if dispatcher else 0.0,
            in_flight=dispatcher.in_flight if dispatcher else 0,
            limit=dispatcher.limit if dispatcher else 0,
            running=dispatcher.running if dispatcher else 0,
            sequences=dispatcher.sequences if dispatcher else 0,
            devices=tuple(
                DeviceFigures(
                    p.pool.device, p.effective.streams, p.effective.threads, p.pool.width, p.effective.precision
                )
                for p in (deployment.loaded.pools if deployment is not None else ())
            ),
            objective=objective.latency_slo if objective is not None else None,
            percentile=objective.percentile if objective is not None else 0.0,
            tuning=tuning.said if tuning is not None else "",
        )


def _said(record: TuningRecord) -> str:
    status = record.status
    if status.phase is TuningPhase.SETTLED and not status.status_text:
        return ""
    return f"{status.phase.value}: {status.status_text}" if status.status_text else status.phase.value


def _key(model_version: ModelVersion) -> tuple[str, str]:
    return model_version.name, str(model_version.version)


def _version(model_version: ModelVersion, deployment: Deployment, tuning: TuningState | None) -> VersionState:
    dispatcher, objective = deployment.dispatcher, deployment.config.objective
    return VersionState(
        model=model_version.name,
        version=str(model_version.version),
        queue_length=dispatcher.waiting,
        queue_bytes=dispatcher.waiting_bytes,
        queue_oldest=dispatcher.oldest,
        in_flight=dispatcher.in_flight,
        limit=dispatcher.limit,
        running=dispatcher.running,
        sequences=dispatcher.sequences,
        sequences_limit=most_sequences(deployment.config, deployment.signature)
        if deployment.signature.in_sequences
        else None,
        load_seconds=deployment.loaded.seconds,
        latency=objective.latency_slo,
        # 99.9 / 100 is 0.9990000000000001.
        latency_ratio=round(objective.percentile / 100, 9),
        availability_ratio=round(objective.availability / 100, 9),
        devices=tuple(_device(deployment, pool) for pool in deployment.loaded.pools),
        tuning=tuning,
    )


def _device(deployment: Deployment, pool: LoadedPool) -> DeviceState:
    effective, execution = pool.effective, deployment.config.execution
    return DeviceState(
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


def _outcomes(record: VersionCounters) -> dict[str, int]:
    outcomes: Counter[str] = Counter()
    for (_, outcome, _), number in record.requests.copy().items():
        outcomes[outcome] += number
    return dict(outcomes)


def _resident() -> int:
    """Bytes of memory in use; 0 where the kernel does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0
