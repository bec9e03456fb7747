"""The composition root: the only place that constructs, and the numbered start-up and drain."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from inferd import descriptors
from inferd.catalog.catalog import Catalog
from inferd.config.daemon import Settings, exposures, split_host_port, unknown_variables
from inferd.deployment.loader import CatalogLimits
from inferd.engine.cpu_budget import cpu_threads
from inferd.engine.device_probe import DeviceProbe
from inferd.engine.model import Engine
from inferd.engine.preflight import PreflightLimits
from inferd.errors import UnknownModel
from inferd.exit_deadline import LAST_SECONDS, ExitDeadline
from inferd.exposition.devices import DeviceCollector
from inferd.exposition.exporter import Exporter, Pages, registry_of
from inferd.exposition.host import ConnectionCollector, HostCollector
from inferd.exposition.lag import AcceptWaitCollector, LagMonitor
from inferd.exposition.log_lines import LogCollector
from inferd.exposition.merged import text_of
from inferd.exposition.scrape import Scrape
from inferd.exposition.security import SecurityCollector
from inferd.exposition.snapshot_series import SnapshotCollector
from inferd.exposition.snapshotter import CountSources, ModelSources, Snapshotter
from inferd.exposition.status import Status
from inferd.exposition.triton import TritonCollector
from inferd.health.liveness import LivenessRules
from inferd.lifecycle import Lifecycle, ModelState, Phase
from inferd.log_writer import LogWriter
from inferd.logs import RequestLog
from inferd.metrics import merge_snapshots
from inferd.metrics.recorder import Recorder
from inferd.patience import hung
from inferd.reload import Reloader
from inferd.repository.find import Repository
from inferd.repository.watch import Watch
from inferd.requests import Observation
from inferd.rpc.control import RepositoryControl
from inferd.rpc.fanout import WorkerFanout
from inferd.rpc.inference import Inference, InferenceSettings
from inferd.rpc.metadata import Metadata
from inferd.rpc.server import Rpcs, Server, ServerSettings
from inferd.rpc.status import code_of
from inferd.rpc.tuning import TunerControl
from inferd.scheduling.accept_wait import AcceptWait
from inferd.security.credentials import Credentials
from inferd.shared_memory.store import RegionStore
from inferd.supervision.inline_runs import InlineRuns
from inferd.supervision.monitor import HealthMonitor, MonitorRules
from inferd.supervision.restart import Restarter
from inferd.systemd.notifier import SystemdNotifier
from inferd.systemd.notify import NotifySender, watchdog_seconds
from inferd.tracing.sampling import Tracer
from inferd.tuner.operator_commands import OperatorCommands
from inferd.tuner.profile import Profiles
from inferd.tuner.records import TuningRecords
from inferd.tuner.rules import TunerRules
from inferd.tuner.tuner import Tuner
from inferd.workers.report_socket import Reports, ReportServer
from inferd.workers.supervisor_pipe import watch_supervisor
from inferd.workers.worker_identity import WorkerIdentity

log = structlog.get_logger("inferd")

# Seconds for responses to leave, and for loads and unloads to end, where requests have taken all of drain_timeout.
_LEAVING_SECONDS, _CHANGING_SECONDS = 5.0, 2.0


@dataclass(frozen=True, slots=True)
class ExitOutcome:
    """How the daemon ended; ``abrupt`` if threads are left that would keep the process from ending, ``restart`` if a
    fresh process is to take over, which can use a device that this one has lost."""

    abrupt: bool
    restart: bool = False


class App:
    """One daemon, from settings to exit; or one worker of a daemon that is several processes, see workers/daemon.py."""

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Settings] | None = None,
        identity: WorkerIdentity | None = None,
        *,
        deadline: ExitDeadline,
        log_writer: LogWriter | None = None,
    ) -> None:
        """Build every part and bind the metrics port. ``read`` gives the settings at a reload; ``identity`` makes it a
        worker, which has no metrics port and reports to its supervisor; ``deadline`` takes the signals;
        ``log_writer`` writes the log.

        Raises ConfigurationError.
        """
        self._settings = settings
        self._identity = identity
        self._log_writer = log_writer
        self._deadline = deadline
        fanout = self._fanout = WorkerFanout(identity) if identity is not None else None
        self._stop = asyncio.Event()
        self._restart = False
        self._grpc_port = 0
        self._lifecycle = Lifecycle()
        self._recorder = Recorder(settings.metrics_retention)
        self._request_log = RequestLog(settings.request_log)
        self._tracer = Tracer(settings.trace_endpoint, settings.trace_ratio, lambda error: code_of(error).name)
        self._credentials = Credentials.of(settings)
        self._engine = engine = Engine.of(settings)
        on_stored = fanout.load if fanout is not None else lambda _: None
        tunings = TuningRecords(engine, Profiles(settings.profile_dir), on_stored=on_stored)
        self._repository = Repository.of(settings)
        self._catalog = Catalog(
            self._repository,
            engine,
            CatalogLimits.of(settings, cpu_threads(settings)),
            observe=self._observe,
            changed=self._changed,
            tuned=tunings.tuned,
        )
        self._tuner = Tuner(TunerRules.of(settings), tunings, self._catalog)
        self._reloader = Reloader(settings, self._catalog, read=read or (lambda: settings), take=self._apply_settings)
        self._reloading: list[asyncio.Task[None]] = []
        self._inference, self._server = self._serving(settings)
        sender = NotifySender()
        watchdog = watchdog_seconds() if sender.enabled else None
        liveness = LivenessRules.within(watchdog) if watchdog is not None else None
        self._device_probe = DeviceProbe(PreflightLimits.of(settings))
        self._health = self._health_monitor(liveness)
        self._systemd = SystemdNotifier(
            sender,
            self._lifecycle,
            liveness,
            wanted=lambda: (entry.state for entry in self._catalog.index() if entry.desired),
            silent=self._health.silent,
        )
        self._lag = LagMonitor()
        snapshotter = self._snapshotter()
        self._status = Status(snapshotter.snapshot)
        self._exporter = self._exporter_of(snapshotter)

    def _serving(self, settings: Settings) -> tuple[Inference, Server]:
        """The inference RPCs, and the server of all RPCs."""
        accept_wait, regions = AcceptWait(), RegionStore.of(settings)
        inference = Inference(
            self._catalog,
            self._lifecycle,
            self._observe,
            settings=InferenceSettings.of(settings, proven=self._credentials.authority is not None),
            traced=self._tracer.begin,
            shared_memory=regions,
            accept_wait=accept_wait,
        )
        server = Server(
            self._rpcs(inference, regions),
            ServerSettings.of(settings),
            self._observe,
            credentials=self._credentials,
            fanout=self._fanout,
            accept_wait=accept_wait,
        )
        return inference, server

    def _rpcs(self, inference: Inference, regions: RegionStore | None) -> Rpcs:
        """The RPCs that clients may call."""
        log_settings = {key: getattr(self._settings, key) for key in ("log_level", "log_format", "request_log")}
        metadata = Metadata(
            self._catalog,
            self._lifecycle,
            self._recorder,
            log_settings=log_settings,
            shared_memory=regions is not None,
        )
        control = RepositoryControl(self._catalog)
        return Rpcs(inference, metadata, control, TunerControl(OperatorCommands(self._tuner)), regions)

    def _health_monitor(self, liveness: LivenessRules | None) -> HealthMonitor:
        """The monitor of versions and devices, for readiness and for the watchdog."""
        return HealthMonitor(
            self._catalog,
            self._engine.device_status.present,
            MonitorRules.of(self._settings, liveness),
            restarter=Restarter.of(self._settings, self._device_probe.unusable, self._restart_for),
            inline_runs=InlineRuns(self._catalog, free=self._tuner.may_change_path, told=self._tuner.path_changed),
        )

    def _snapshotter(self) -> Snapshotter:
        """The snapshotter, which reads the state of every part."""
        models = ModelSources(self._catalog, self._tuner, self._health)
        counts = CountSources(
            self._recorder,
            lambda: self._inference.open_calls,
            lambda: self._inference.ignored.number,
            self._reloader.counts,
            self._engine.cache_lookups,
        )
        return Snapshotter(self._lifecycle, models, counts)

    def _exporter_of(self, snapshotter: Snapshotter) -> Exporter | ReportServer:
        """The metrics port, or a worker's reports to its supervisor."""
        devices = self._engine.device_status
        registry = registry_of(
            (
                self._recorder,
                SnapshotCollector(snapshotter.snapshot),
                HostCollector(cpu_threads(self._settings)),
                self._lag,
                AcceptWaitCollector(self._server.accept_waits),
                ConnectionCollector(lambda: self._grpc_port, self._server.connection_limit),
                DeviceCollector(snapshotter.devices, devices.present, devices.memory),
                SecurityCollector(self._credentials),
                *([LogCollector(self._log_writer)] if self._log_writer is not None else []),
                *([TritonCollector(snapshotter.statistics)] if self._settings.triton_metrics else []),
            )
        )
        if self._identity is not None:
            reports = self._identity.socket("reports")
            return ReportServer(reports, _worker_answers(snapshotter, Scrape(registry)))
        pages = Pages(registry, snapshotter.readiness, self._status, self._lag.stalled)
        return Exporter.of(self._settings, pages, self._credentials)

    async def run(self) -> ExitOutcome:
        """Serve until a signal, then drain."""
        loop = asyncio.get_running_loop()
        # SIGHUP from the first moment, too: unhandled, it would end the process. systemd tells every process of a unit,
        # so a worker hears a wish twice; its supervisor ends it at once if it wants to.
        self._deadline.take_signals(
            lambda: loop.call_soon_threadsafe(self._end),
            lambda: loop.call_soon_threadsafe(self._reloader.ask),
            second=_nothing if self._identity is None else None,
        )
        if self._identity is not None:
            watch_supervisor(self._identity, lambda: self._let_go(loop))
        loading = asyncio.create_task(self._start())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                await loading  # raises what start-up raised
        except BaseException:
            self._deadline.arm()
            self._lifecycle.move(Phase.FAILED)
            raise
        await stopping
        complete = await self._drain()
        unfinished = not (complete and loading.done())
        loading.cancel()
        abrupt = unfinished or self._health.stopped_short or self._catalog.unfreed() > 0 or bool(hung())
        return ExitOutcome(abrupt, self._restart)

    async def _start(self) -> None:
        # 1. Probes and scrapes see "starting" from now on.
        self._lag.start(asyncio.get_running_loop())
        if self._identity is None:
            self._status.start()
        self._exporter.start()
        self._systemd.start()
        if self._identity is None or self._identity.first:
            for name, hint in unknown_variables().items():
                log.warning("unknown environment variable", variable=name, hint=hint.strip(" ()"))
            if oddity := await asyncio.to_thread(self._repository.oddity):
                log.warning("unexpected model repository", path=str(self._repository.root), problem=oddity)
            wanted, room = self._settings.max_connections, self._server.connection_limit
            if room < wanted:
                files = {"open_files": descriptors.most_files(), "connections": room, "max_connections": wanted}
                log.warning("few files may be open", **files, hint="ulimit -n, LimitNOFILE=")
            for setting, what in exposures(self._settings):
                log.warning("port is open to other machines", setting=setting, problem=what)
        self._credentials.start()
        # 2. Clients can connect, and learn that nothing is ready yet; with reuse_port another daemon may still answer.
        if not self._settings.reuse_port:
            await self._listen()
        # 3. Models load; one that fails does not stop the others. Changes on disk are noticed from here on.
        watch = Watch(self._repository)
        if self._settings.repository_poll_interval:
            await asyncio.to_thread(watch.changed)
        await self._catalog.load_all()
        # 4. Ready.
        await self._unload_as_others()
        if self._settings.reuse_port and self._lifecycle.phase is Phase.STARTING:
            await self._listen()
        if self._lifecycle.phase is not Phase.STARTING:
            return
        self._lifecycle.move(Phase.READY)
        await self._changed()
        self._say_ready()
        self._systemd.ready()
        self._health.start()
        # From here on calls are passed on to this worker, too; this applies those that came a moment earlier.
        await self._unload_as_others()
        # 5. The tuner looks for better settings while requests are served, and changes on disk are loaded.
        self._tuner.start()
        self._reloading.append(asyncio.create_task(self._reloader.run(self._systemd.reloading, self._systemd.ready)))
        if self._settings.repository_poll_interval:
            watching = self._reloader.watch(watch, self._settings.repository_poll_interval)
            self._reloading.append(asyncio.create_task(watching))

    async def _unload_as_others(self) -> None:
        """Serve no model that clients had the other workers unload."""
        for name in await self._fanout.unloaded() if self._fanout is not None else ():
            with suppress(UnknownModel):
                await self._catalog.unload(name)

    def _say_ready(self) -> None:
        states = [entry.state for entry in self._catalog.index()]
        models = {"models": states.count(ModelState.READY), "broken": len(states) - states.count(ModelState.READY)}
        grpc = _address(split_host_port(self._settings.grpc_bind)[0], self._grpc_port)
        if isinstance(self._exporter, Exporter):
            host, _ = split_host_port(self._settings.metrics_bind)
            log.info("ready", grpc=grpc, metrics=_address(host, self._exporter.port), **models)
        else:
            log.info("worker ready", grpc=grpc, **models)

    async def _listen(self) -> None:
        self._grpc_port = self._server.bind(self._settings.grpc_bind)
        await self._server.start()

    async def _drain(self) -> bool:
        """Drain; False if a load goes on, which can't be interrupted."""
        self._deadline.arm()
        # 1. Readiness flips before anything else: balancers look there first.
        self._lifecycle.move(Phase.DRAINING)
        await self._changed()
        log.info("draining", timeout=self._settings.drain_timeout)
        until = time.monotonic() + self._settings.drain_timeout
        self._systemd.stopping(self._settings.drain_timeout + LAST_SECONDS)
        for task in self._reloading:
            task.cancel()
        # 2. Streams are read no further, new unary calls are refused, tuning stops, and preflight children end.
        self._inference.end_streams()
        self._engine.close()
        self._device_probe.close()
        ending = asyncio.gather(self._tuner.stop(), self._health.stop())
        # 3. Accepted requests are answered.
        if not await self._catalog.drain(self._settings.drain_timeout):
            log.warning("drain timed out; remaining requests answered UNAVAILABLE")
        # 4. Clients are told to go elsewhere and answers reach the wire, then the port closes. In a roll-over every
        # call that still comes here before is one that fails, so nothing is waited for that takes time: not tuning to
        # end, nor memory to be freed.
        closing = asyncio.create_task(self._server.stop(max(_LEAVING_SECONDS, until - time.monotonic())))
        # 5. Infer requests end before the interpreter does.
        await ending
        complete = await self._catalog.close(max(_CHANGING_SECONDS, until - time.monotonic()))
        await closing
        # 6. The metrics port closes last, so that the drain can be observed.
        self._exporter.close()
        self._credentials.stop()
        self._systemd.stop()
        self._status.stop()
        self._lag.stop()
        await asyncio.to_thread(self._tracer.close)
        self._lifecycle.move(Phase.STOPPED)
        if self._identity is not None:
            self._identity.clean_up()
        log.info("stopped")
        return complete

    def _let_go(self, loop: asyncio.AbstractEventLoop) -> None:
        """The supervisor wants this worker to drain, or is gone: so it ends even if its event loop hangs."""
        self._deadline.arm()
        loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        """Drain and end. During a drain for a restart that means: without a fresh process."""
        self._restart = False
        self._stop.set()

    def _restart_for(self, device: str) -> None:
        """Drain and end, so that the supervisor starts a fresh process."""
        if self._stop.is_set():
            return
        log.error("device lost to this process only; restarting", device=device)
        self._restart = True
        self._stop.set()

    async def _changed(self) -> None:
        present = self._catalog.loaded()
        objectives = {(s.name, str(s.version)): deployment.config.objective.latency_slo for s, deployment in present}
        if dropped := self._recorder.follow(objectives):
            # What others count goes with it: shown again, it would be taken for more.
            for counting in (self._catalog, self._health, self._tuner.records):
                counting.forget(dropped)
        await self._server.show_health(self._catalog, self._lifecycle)

    def _apply_settings(self, settings: Settings) -> None:
        """Apply the settings that may change while serving: see reload.RELOADABLE."""
        self._request_log.which = settings.request_log
        self._credentials.reload()

    def _observe(self, seen: Observation) -> None:
        # On the path of every request: a feature that is off is not called at all.
        self._recorder.observe(seen)
        if self._request_log.which != "off":
            self._request_log.observe(seen)
        if seen.trace is not None:
            self._tracer.observe(seen)


def _worker_answers(snapshotter: Snapshotter, scrape: Scrape) -> Reports:
    """What a worker answers its supervisor."""
    return {
        "metrics": lambda: text_of(scrape),
        "snapshot": lambda: merge_snapshots.as_json(snapshotter.snapshot()),
        "readiness": lambda: _text(snapshotter.readiness()),
    }


def _nothing() -> None: ...


def _text(readiness: tuple[bool, str]) -> bytes:
    return readiness[1].encode()


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
