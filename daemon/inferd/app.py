"""The composition root: the only place that constructs, and the numbered start-up and drain."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from inferd import __version__
from inferd.catalog import Catalog, CatalogLimits
from inferd.config.daemon import Settings, exposures, split_host_port, unknown_variables
from inferd.engine.cache import BlobCache
from inferd.engine.cpu_budget import cpu_budget
from inferd.engine.model import Engine
from inferd.engine.preflight import Preflight, PreflightLimits, memory_allowed
from inferd.engine.runtime import version as openvino_version
from inferd.lifecycle import Lifecycle, ModelState, Phase
from inferd.logs import RequestLog
from inferd.metrics.devices import DeviceCollector
from inferd.metrics.exporter import Exporter, registry_of
from inferd.metrics.host import HostCollector
from inferd.metrics.lag import LagMonitor
from inferd.metrics.reading import Reading
from inferd.metrics.recorder import Recorder
from inferd.metrics.security import SecurityCollector
from inferd.metrics.state import StateCollector
from inferd.metrics.status import Status
from inferd.metrics.triton import TritonCollector
from inferd.reload import Reloader
from inferd.repository import repository_of
from inferd.requests import Observation
from inferd.rpc.codec import TensorLimits
from inferd.rpc.control import RepositoryControl
from inferd.rpc.inference import Inference
from inferd.rpc.interceptors import Access
from inferd.rpc.metadata import Metadata
from inferd.rpc.server import ConnectionLimits, Server
from inferd.rpc.status import code_of
from inferd.rpc.tuning import TunerControl
from inferd.scheduling.scheduler import Limits
from inferd.security.certificates import CertificateFiles
from inferd.security.credentials import Credentials
from inferd.supervision.health import HealthRules
from inferd.supervision.monitor import HealthMonitor
from inferd.supervision.notify import Notifier, watchdog_seconds
from inferd.supervision.supervisor import Supervisor
from inferd.tracing import Tracer
from inferd.tuning.profile import Profiles
from inferd.tuning.tuner import Tuner, TunerRules
from inferd.watch import Watch

log = structlog.get_logger("inferd")

# timeout(1) and some supervisors signal a process and then its group: that is one wish, not two.
_ONE_WISH_SECONDS = 0.1
# What the drain may take beyond waiting for accepted requests and for their answers to leave.
_FREEING_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended; ``abrupt`` when threads are left that would hold the process back."""

    abrupt: bool


def cpu_threads(settings: Settings) -> int:
    """How many threads CPU inference gets: never more than this process may use."""
    budget = cpu_budget().threads
    return min(settings.cpu_threads or budget, budget)


def engine_of(settings: Settings) -> Engine:
    """The engine ``settings`` ask for."""
    threads, cache = cpu_threads(settings), BlobCache(settings.cache_dir, settings.cache_max_bytes)
    if settings.preflight == "off":
        return Engine(threads, cache)
    limits = PreflightLimits(memory_allowed(settings.preflight_memory_bytes), settings.preflight_timeout, threads)
    return Engine(threads, cache, Preflight(cache, limits))


def _connection_limits(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        settings.max_connections,
        settings.max_metadata_bytes,
        settings.max_concurrent_streams,
        settings.connection_idle_timeout,
        settings.connection_max_age,
        settings.connection_age_grace,
    )


def credentials_of(settings: Settings) -> Credentials:
    """Certificate and tokens from the files that ``settings`` name. Raises ConfigurationError."""
    certificate = None
    if settings.tls_cert:
        client_ca = Path(settings.tls_client_ca) if settings.tls_client_ca else None
        certificate = CertificateFiles(Path(settings.tls_cert), Path(settings.tls_key), client_ca)
    return Credentials(certificate, Path(settings.tokens_file) if settings.tokens_file else None)


def _controls(settings: Settings) -> list[tuple[Access, bool]]:
    return [(Access.REPOSITORY, settings.repository_control), (Access.TUNER, settings.tuner_control)]


class App:
    """One daemon, from settings to exit."""

    def __init__(self, settings: Settings, read: Callable[[], Settings] | None = None) -> None:
        """Build every part and bind the metrics port. ``read`` gives the settings as they are at a reload.

        Raises ConfigurationError.
        """
        self._settings = settings
        self._stop = asyncio.Event()
        self._stopped_at = 0.0
        self._grpc_port = 0
        self._lifecycle = Lifecycle()
        self._recorder = Recorder()
        self._request_log = RequestLog(settings.request_log)
        self._tracer = Tracer(settings.trace_endpoint, settings.trace_ratio, lambda error: code_of(error).name)
        self._credentials = credentials_of(settings)
        self._engine = engine = engine_of(settings)
        self._tuner = Tuner(
            TunerRules(
                settings.tuning,
                settings.tune_budget,
                cpu_threads(settings),
                settings.cache_dir,
                settings.cache_max_bytes,
            ),
            engine,
            Profiles(settings.profile_dir),
        )
        self._repository = repository_of(settings)
        self._catalog = Catalog(
            self._repository,
            engine,
            CatalogLimits(
                Limits(settings.queue_max_length, settings.queue_max_bytes, settings.client_max_requests or None),
                settings.load_parallelism,
                settings.drain_timeout,
                cpu_threads(settings) if settings.cpu_sharing == "split" else 0,
            ),
            self._observe,
            self._changed,
            self._tuner.tuned,
        )
        self._reloader = Reloader(settings, read or (lambda: settings), self._resettle, self._catalog)
        self._reloading: list[asyncio.Task[None]] = []
        self._inference = Inference(
            self._catalog,
            self._lifecycle,
            self._observe,
            settings.stream_max_pending,
            settings.stream_max_pending_bytes,
            # Who has to prove who they are is counted by that.
            settings.client_metadata_key
            if settings.client_max_requests and self._credentials.authority is None
            else "",
            self._tracer.begin,
            TensorLimits(settings.max_tensor_elements, settings.max_tensor_bytes),
        )
        self._server = Server(
            self._inference,
            Metadata(
                self._catalog,
                self._lifecycle,
                self._recorder,
                {
                    "log_level": settings.log_level,
                    "log_format": settings.log_format,
                    "request_log": settings.request_log,
                },
            ),
            RepositoryControl(self._catalog),
            TunerControl(self._tuner, self._catalog),
            settings.max_message_bytes,
            self._observe,
            [access for access, on in _controls(settings) if on],
            reuse_port=settings.reuse_port,
            credentials=self._credentials,
            connections=_connection_limits(settings),
        )
        self._supervisor = Supervisor(Notifier(), watchdog_seconds(), self._catalog, self._lifecycle)
        devices = engine.device_status
        self._health = HealthMonitor(self._catalog, devices.present, HealthRules(quiet=settings.canary_interval))
        self._lag = LagMonitor()
        reading = Reading(
            self._lifecycle,
            self._catalog,
            engine,
            self._tuner,
            self._recorder,
            lambda: self._inference.open_calls,
            self._reloader.counts,
        )
        collectors = (
            self._recorder,
            StateCollector(reading.state, __version__, openvino_version()),
            HostCollector(cpu_threads(settings)),
            self._lag,
            DeviceCollector(reading.devices, devices.present, devices.memory),
            SecurityCollector(self._credentials),
            *([TritonCollector(reading.statistics)] if settings.triton_metrics else []),
        )
        self._status = Status(reading.figures)
        host, port = split_host_port(settings.metrics_bind)
        self._exporter = Exporter(
            host, port, registry_of(collectors), reading.readiness, self._status, self._credentials
        )

    async def run(self) -> Ending:
        """Serve until a signal, then drain."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        # From the first moment: unhandled, it would end the process.
        loop.add_signal_handler(signal.SIGHUP, self._reloader.ask)
        loading = asyncio.create_task(self._start())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                await loading  # raises what start-up raised
        except BaseException:
            self._lifecycle.move(Phase.FAILED)
            raise
        await stopping
        await self._drain()
        unfinished = not loading.done()
        loading.cancel()
        return Ending(abrupt=unfinished or self._health.stopped_short or self._catalog.stuck() > 0)

    async def _start(self) -> None:
        # 1. Whoever watches sees "starting" from now on.
        self._lag.start(asyncio.get_running_loop())
        self._status.start()
        self._exporter.start()
        self._supervisor.start()
        for name in unknown_variables():
            log.warning("variable names no setting", variable=name)
        for setting, what in exposures(self._settings):
            log.warning("port is open to other machines", setting=setting, problem=what)
        self._credentials.start()
        # 2. Clients can connect, and learn that nothing is ready yet; not where another daemon answers here.
        if not self._settings.reuse_port:
            await self._listen()
        # 3. Models; one that fails does not stop the others. What changes from here on is noticed.
        watch = Watch(self._repository)
        if self._settings.repository_watch:
            await asyncio.to_thread(watch.changed)
        await self._catalog.load_all()
        # 4. Ready.
        if self._settings.reuse_port and self._lifecycle.phase is Phase.STARTING:
            await self._listen()
        if self._lifecycle.phase is not Phase.STARTING:
            return
        self._lifecycle.move(Phase.READY)
        await self._changed()
        metrics_host, _ = split_host_port(self._settings.metrics_bind)
        states = [entry.state for entry in self._catalog.index()]
        log.info(
            "ready",
            grpc=_address(split_host_port(self._settings.grpc_bind)[0], self._grpc_port),
            metrics=_address(metrics_host, self._exporter.port),
            models=states.count(ModelState.READY),
            broken=len(states) - states.count(ModelState.READY),
        )
        self._supervisor.ready()
        self._health.start()
        # 5. What can be served better is found out beside serving, and what changes on disk is taken up.
        self._tuner.start(self._catalog)
        self._reloading.append(
            asyncio.create_task(self._reloader.run(self._supervisor.reloading, self._supervisor.ready))
        )
        if self._settings.repository_watch:
            watching = self._reloader.watch(watch, self._settings.repository_watch)
            self._reloading.append(asyncio.create_task(watching))

    async def _listen(self) -> None:
        self._grpc_port = self._server.bind(self._settings.grpc_bind)
        await self._server.start()

    async def _drain(self) -> None:
        # 1. Readiness flips before anything else: balancers look there first.
        self._lifecycle.move(Phase.DRAINING)
        await self._changed()
        log.info("draining", timeout=self._settings.drain_timeout)
        self._supervisor.stopping(2 * self._settings.drain_timeout + _FREEING_SECONDS)
        for task in self._reloading:
            task.cancel()
        # 2. Streams are read no further; unary calls that still arrive are refused. Nothing is tuned any more.
        # Child processes that try models end.
        self._inference.end_streams()
        self._engine.close()
        await self._tuner.stop()
        await self._health.stop()
        # 3. What was accepted is answered.
        if not await self._catalog.drain(self._settings.drain_timeout):
            log.warning("drain timed out; what is left is answered UNAVAILABLE")
        # 4. Clients are told to go elsewhere and answers reach the wire, then the port closes. In a roll-over every
        # call that still comes here before is one that fails, so freeing memory is not waited for.
        closing = asyncio.create_task(self._server.stop(max(1.0, self._settings.drain_timeout)))
        # 5. Infer requests end before the interpreter does.
        await self._catalog.close()
        await closing
        # 6. Last, so that the drain could be watched.
        self._exporter.close()
        self._credentials.stop()
        self._supervisor.stop()
        self._status.stop()
        self._lag.stop()
        await asyncio.to_thread(self._tracer.close)
        self._lifecycle.move(Phase.STOPPED)
        log.info("stopped")

    def _signalled(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._stop.is_set():
            if now - self._stopped_at < _ONE_WISH_SECONDS:
                return
            log.warning("second signal: ending at once", signal=number.name)
            with suppress(OSError):
                sys.stderr.flush()
            os._exit(128 + number)
        log.info("signal", signal=number.name)
        self._stopped_at = now
        self._stop.set()

    async def _changed(self) -> None:
        present = self._catalog.holding()
        self._recorder.follow({(s.name, str(s.version)): live.config.objective.latency_slo for s, live in present})
        await self._server.show_health(self._catalog, self._lifecycle)

    def _resettle(self, settings: Settings) -> None:
        """Take up what may change while serving: see reload.LIVE."""
        self._request_log.which = settings.request_log
        self._credentials.reload()

    def _observe(self, seen: Observation) -> None:
        # On the path of every request: what is off is not called at all.
        self._recorder.observe(seen)
        if self._request_log.which != "off":
            self._request_log.observe(seen)
        if seen.trace is not None:
            self._tracer.observe(seen)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
