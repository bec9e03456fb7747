"""The composition root of a daemon of several processes: their supervisor, which serves no model itself.

It uses neither OpenVINO nor gRPC. Each worker is the daemon of app.py, with its own command line.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import structlog

from inferd.config.daemon import Settings
from inferd.engine.cpu_budget import cpu_budget
from inferd.engine.preflight import memory_allowed
from inferd.engine.topology import cpu_layout
from inferd.errors import ConfigurationError
from inferd.exit_deadline import LAST_SECONDS, ExitDeadline
from inferd.exposition.exporter import Exporter, Pages
from inferd.exposition.merged import Key, WorkersCollector, merged_registry
from inferd.exposition.security import SecurityCollector
from inferd.exposition.status import Status
from inferd.lifecycle import Lifecycle, Phase
from inferd.metrics import merge_snapshots
from inferd.metrics.process_usage import ProcessUsage
from inferd.metrics.retired_counters import RetiredCounters
from inferd.metrics.snapshot import ServerSnapshot
from inferd.security.credentials import Credentials
from inferd.systemd.notify import NotifySender, watchdog_seconds
from inferd.workers.cpu_sets import automatic, cpu_sets
from inferd.workers.lifecycle import SERVING
from inferd.workers.port import HeldPort
from inferd.workers.process import WorkerSpec
from inferd.workers.report_socket import query_all
from inferd.workers.supervisor import WorkerSupervisor
from inferd.workers.worker_identity import WorkerIdentity

log = structlog.get_logger("inferd")

# If a worker takes longer than this, in seconds, its last report is used; and a probe does not wait for it.
_PATIENCE, _PROBE_PATIENCE = 1.0, 0.3

WORKERS_SECONDS = 15.0
"""How much longer than a worker its supervisor may take to end: the worker's last seconds, then its killing."""

NOT_CLEAN = 1
"""Exit status if a worker did not drain cleanly."""


def worker_count(settings: Settings) -> int:
    """How many workers ``settings`` configure on this machine."""
    return settings.workers or automatic(cpu_layout(), _threads(settings))


def _threads(settings: Settings) -> int:
    budget = cpu_budget().threads
    return min(settings.cpu_threads or budget, budget)


def worker_specs(
    settings: Settings, argv: Sequence[str], count: int, bind: str, folder: Path, memory: int
) -> tuple[WorkerSpec, ...]:
    """What each of ``count`` workers runs, with its share of the CPUs and of ``memory`` (bytes for preflights)."""
    sets = cpu_sets(cpu_layout(), count)
    # The same for all, so that a profile found by one worker is valid for the others.
    threads = max(1, min(_threads(settings) // count, *map(len, sets)))
    first = WorkerIdentity(0, count, folder)
    common = ["--workers", "1", "--grpc-bind", bind, "--reuse-port", "--cpu-threads", str(threads)]
    common += ["--preflight-memory-bytes", str(max(1, memory // count))]
    return tuple(
        WorkerSpec(
            WorkerIdentity(index, count, folder, first.secret),
            # The last of repeated flags counts. Only the first worker tunes.
            (sys.executable, "-P", "-m", "inferd", *argv, *common, *(() if index == 0 else ("--tuning", "off"))),
            cpus,
        )
        for index, cpus in enumerate(sets)
    )


class WorkersDaemon:
    """One daemon, from settings to exit, as ``count`` workers."""

    def __init__(self, settings: Settings, argv: Sequence[str], count: int, *, deadline: ExitDeadline) -> None:
        """Hold the gRPC port and bind the metrics port; inside the event loop. Raises ConfigurationError."""
        self._settings = settings
        self._deadline = deadline
        self._started = time.monotonic()
        self._stop = asyncio.Event()
        self._lifecycle = Lifecycle()
        self._credentials = Credentials.of(settings)
        self._notifier = NotifySender()
        self._folder = tempfile.TemporaryDirectory(prefix="inferd-")
        self._port = HeldPort(settings.grpc_bind, shared=settings.reuse_port)
        folder = Path(self._folder.name)
        memory = memory_allowed(settings.preflight_memory_bytes)
        specs = worker_specs(settings, argv, count, self._port.bind, folder, memory)
        try:
            self._supervisor = WorkerSupervisor(
                specs, self._notifier, watchdog=watchdog_seconds(), on_complete=self._complete
            )
        except OSError as error:
            # For example, socket paths are limited to about a hundred characters.
            raise ConfigurationError("variable TMPDIR", "", f"can't create sockets in {folder}: {error}") from None
        self._counters: RetiredCounters[Key, ServerSnapshot] = RetiredCounters(merge_snapshots.add_retired)
        self._status = Status(self._snapshot)
        own = (WorkersCollector(self._counts), SecurityCollector(self._credentials))
        registry = merged_registry(lambda: self._query("metrics", _PATIENCE), own)
        self._exporter = Exporter.of(settings, Pages(registry, self._readiness, self._status), self._credentials)

    async def run(self) -> int:
        """Serve until a signal, then drain; returns the exit status."""
        loop = asyncio.get_running_loop()
        self._deadline.take_signals(
            lambda: loop.call_soon_threadsafe(self._stop.set),
            lambda: loop.call_soon_threadsafe(self._reload),
            second=self._end_at_once,
        )
        self._credentials.start()
        self._exporter.start()
        self._supervisor.start()
        self._status.start()
        failing = asyncio.create_task(self._supervisor.failed())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({failing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        clean = await self._drain()
        status = failing.result() if failing.done() else 0 if clean else NOT_CLEAN
        for task in (failing, stopping):
            task.cancel()
        return status

    def _end_at_once(self) -> None:
        self._supervisor.kill()
        self._folder.cleanup()

    async def _drain(self) -> bool:
        self._deadline.arm()
        # 1. Readiness flips before anything else, because load balancers react to it first.
        self._lifecycle.move(Phase.DRAINING)
        log.info("draining", timeout=self._settings.drain_timeout)
        seconds = self._settings.drain_timeout + LAST_SECONDS
        self._notifier.stopping("draining", seconds + WORKERS_SECONDS)
        # 2. The workers drain in parallel, and end.
        clean = await self._supervisor.drain(seconds)
        # 3. Last, so that the drain can be observed.
        self._exporter.close()
        self._status.stop()
        self._credentials.stop()
        self._port.close()
        self._folder.cleanup()
        self._lifecycle.move(Phase.STOPPED)
        log.info("stopped")
        return clean

    def _complete(self) -> None:
        """Called once all workers serve."""
        self._lifecycle.move(Phase.READY)
        host = self._settings.metrics_bind.rpartition(":")[0]
        served = self._supervisor.served
        log.info(
            "ready",
            grpc=self._port.bind,
            metrics=f"{host}:{self._exporter.port}",
            workers=len(self._supervisor.states),
            models=served.serving if served is not None else 0,
            broken=served.wanted - served.serving if served is not None else 0,
        )

    def _reload(self) -> None:
        self._credentials.reload()
        self._supervisor.reload()

    # -- reports of all workers; on threads of the metrics port --------------------

    def _query(self, word: str, patience: float) -> tuple[Mapping[Key, bytes], Collection[Key]]:
        present = self._supervisor.present
        reports = query_all({key: identity.socket("reports") for key, identity in present.items()}, word, patience)
        return reports, present

    def _snapshot(self) -> ServerSnapshot | None:
        reports, present = self._query("snapshot", _PATIENCE)
        self._counters.update({key: merge_snapshots.from_json(text) for key, text in reports.items()}, present)
        whole = merge_snapshots.SupervisorFacts(time.monotonic(), self._started, ProcessUsage.read(), self._phase())
        return merge_snapshots.merge(
            {index: part for (index, _), part in self._counters.parts.items()}, self._counters.retired, whole
        )

    def _phase(self) -> str:
        """The lifecycle's phase, unless too few workers serve at present."""
        phase = self._lifecycle.phase
        return Phase.STARTING.value if phase is Phase.READY and not self._supervisor.ready else phase.value

    def _readiness(self) -> tuple[bool, str]:
        """Whether the daemon takes requests; its phase, and a line for each worker and model that is not ready."""
        lines = [self._phase()]
        lines += [f"worker {i}: {s.value}" for i, s in enumerate(self._supervisor.states) if s not in SERVING]
        reports, present = self._query("readiness", _PROBE_PATIENCE)
        for (index, _), text in sorted(reports.items()):
            lines += [f"worker {index}: {line}" for line in text.decode().splitlines()[1:]]
        # One whose event loop hangs may still report.
        answering = {index for index, _ in reports} & self._supervisor.serving
        mute = sorted({index for index, _ in present} - answering)
        lines += [f"worker {index}: does not answer" for index in mute if self._supervisor.states[index] in SERVING]
        return self._supervisor.ready, "\n".join(lines)

    def _counts(self) -> tuple[int, int, int]:
        states = self._supervisor.states
        return len(states), len(self._supervisor.serving), self._supervisor.replaced
