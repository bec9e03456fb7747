"""Puts the RPCs, health, reflection and channelz behind one listening port."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Self

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_channelz.v1 import channelz_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from inferd._pb import open_inference_pb2 as pb
from inferd._pb import tuner_pb2
from inferd.catalog.catalog import Catalog
from inferd.config.daemon import Settings
from inferd.dispatcher import Observer
from inferd.errors import ConfigurationError, InferdError, InternalFault
from inferd.lifecycle import Lifecycle, ModelState
from inferd.metrics.histogram import Histogram
from inferd.rpc import codec, health, status
from inferd.rpc.accept_wait_probe import AcceptWaitProbe
from inferd.rpc.channelz import Channelz
from inferd.rpc.control import RepositoryControl
from inferd.rpc.fanout import WorkerFanout
from inferd.rpc.gate import SERVICE, TUNER_SERVICE, Access, Gate
from inferd.rpc.health import HealthService
from inferd.rpc.inference import Inference
from inferd.rpc.long_lived_calls import LongLivedCalls
from inferd.rpc.metadata import Metadata
from inferd.rpc.poller import set_poller_batch_scheduling
from inferd.rpc.services import Services
from inferd.rpc.shared_memory import SharedMemory
from inferd.rpc.transport import server_credentials
from inferd.rpc.tuning import TunerControl
from inferd.rpc.unread_calls import UnreadCalls
from inferd.scheduling.accept_wait import AcceptWait
from inferd.security.credentials import Credentials
from inferd.shared_memory.store import RegionStore

log = structlog.get_logger("inferd.rpc")

# A connection on which TLS and HTTP/2 have not begun by then is closed: gRPC's own limit is two minutes.
_HANDSHAKE_MS = 20_000

# Calls that have arrived but were not handled yet. Above a thousand, gRPC cancels calls at random and counts them
# nowhere; which calls to refuse, and with which error, is for inferd to decide.
_PENDING = 100_000

_CHANNELZ = "grpc.channelz.v1.Channelz"
_INFERENCE = frozenset({f"/{SERVICE}/ModelInfer", f"/{SERVICE}/ModelStreamInfer"})

Unary = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Message]]


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections are allowed, and what each may use: bytes of headers in a call, open calls; seconds
    without a call, seconds in total, and seconds for the calls then open, each 0 for no limit."""

    connections: int = 16384
    metadata_bytes: int = 16 << 10
    streams: int = 4096
    idle: float = 3600.0
    age: float = 0.0
    age_grace: float = 60.0

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The limits that ``settings`` ask for."""
        return cls(
            settings.max_connections,
            settings.max_metadata_bytes,
            settings.max_concurrent_streams,
            settings.connection_idle_timeout,
            settings.connection_max_age,
            settings.connection_age_grace,
        )


DEFAULT_CONNECTIONS = ConnectionLimits()


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The largest message in bytes, which RPCs that change the server are enabled, whether another daemon may listen
    on the same port, and what connections may use."""

    max_message_bytes: int
    enabled: Collection[Access] = ()
    reuse_port: bool = False
    connections: ConnectionLimits = DEFAULT_CONNECTIONS

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The server settings that ``settings`` ask for."""
        controls = ((Access.REPOSITORY, settings.repository_control), (Access.TUNER, settings.tuner_control))
        enabled = tuple(access for access, on in controls if on)
        return cls(settings.max_message_bytes, enabled, settings.reuse_port, ConnectionLimits.of(settings))


@dataclass(frozen=True, slots=True)
class Rpcs:
    """The implementations of the RPCs; ``regions`` has clients' shared memory, None if that is off."""

    inference: Inference
    metadata: Metadata
    control: RepositoryControl
    tuner: TunerControl
    regions: RegionStore | None = None


class Server:
    """The gRPC endpoint: listens from :meth:`bind` on, answers from :meth:`start` on."""

    def __init__(
        self,
        rpcs: Rpcs,
        settings: ServerSettings,
        observe: Observer,
        *,
        credentials: Credentials | None = None,
        fanout: WorkerFanout | None = None,
        accept_wait: AcceptWait | None = None,
    ) -> None:
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)
        self._inference = inference = rpcs.inference
        services = Services()
        self._long_lived = LongLivedCalls(services, _INFERENCE)
        self._credentials = credentials if credentials is not None else Credentials()
        gate = Gate(
            self._long_lived,
            enabled=settings.enabled,
            credentials=self._credentials,
            observe=observe,
            secret=fanout.secret if fanout is not None else "",
        )
        self._fanout = fanout
        self._stopping: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # Two daemons on one port by accident must be an error, not a coin toss for each connection.
                ("grpc.so_reuseport", int(settings.reuse_port)),
                ("grpc.enable_channelz", 1),
                # Clients that ping to keep idle connections open are common; don't disconnect them.
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.server.max_pending_requests", _PENDING),
                ("grpc.server.max_pending_requests_hard_limit", _PENDING),
                *_connection_options(settings.connections),
            ],
        )
        set_poller_batch_scheduling()
        wait = accept_wait if accept_wait is not None else AcceptWait()
        self._accept_wait_probe = AcceptWaitProbe(wait, lambda: inference.open_calls > 0)
        # The only ones that gRPC knows. The first only counts, and skips the calls that the gate refuses.
        unread_calls = UnreadCalls(gate, f"/{SERVICE}/ModelInfer", observe)
        self._server.add_generic_rpc_handlers((unread_calls, self._accept_wait_probe))
        of_the_protocol = _handlers(rpcs, SharedMemory(rpcs.regions, self._credentials), fanout)
        services.add_generic_rpc_handlers((of_the_protocol, _tuner_handlers(rpcs.tuner, fanout)))
        self._health = HealthService()
        services.add_generic_rpc_handlers((self._health.handlers(),))
        channelz_pb2_grpc.add_ChannelzServicer_to_server(Channelz(), services)
        reflected = (SERVICE, TUNER_SERVICE, health.SERVICE, _CHANNELZ, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer(reflected), services
        )

    def bind(self, address: str) -> int:
        """Listen on ``address``; returns the port. Raises ConfigurationError if it is taken."""
        secure = server_credentials(self._credentials)
        try:
            if secure is None:
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, secure)
        except RuntimeError:
            port = 0
        if not port:
            raise ConfigurationError(
                "grpc_bind", "", f"can't listen on {address}: the address is in use or not this machine's"
            )
        if self._fanout is not None:
            # In a folder that only this user can open, and for calls that another worker has admitted.
            self._server.add_insecure_port(self._fanout.address)
        self._accept_wait_probe.bind(self._server)
        return int(port)

    @property
    def accept_waits(self) -> Histogram:
        """How long the server's calls to itself waited before inferd saw them."""
        return self._accept_wait_probe.waits

    async def start(self) -> None:
        """Answer calls; health reports NOT_SERVING until :meth:`show_health`."""
        await self._health.show({"": False})
        await self._server.start()
        self._accept_wait_probe.start()

    async def show_health(self, catalog: Catalog, lifecycle: Lifecycle) -> None:
        """Report the server's state and each model's, as ``model`` and ``model/version``, to health watchers."""
        states = {"": lifecycle.accepts, SERVICE: lifecycle.accepts}
        for entry in catalog.index():
            ready = lifecycle.accepts and entry.state is ModelState.READY
            states[entry.name] = states.get(entry.name, False) or ready
            if entry.version:
                states[f"{entry.name}/{entry.version}"] = ready
        await self._health.show(states)

    async def stop(self, seconds: float) -> None:
        """Take no new calls, and give inference in flight ``seconds``. Harmless when called again.

        Calls without an end of their own (health's Watch, reflection) are ended once
        the inferences have finished.
        """
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(seconds))
        await asyncio.shield(self._stopping)

    async def _stop(self, seconds: float) -> None:
        self._accept_wait_probe.stop()
        # One stop only: of two at once the second can touch what the first has freed (see rpc/long_lived_calls).
        stopping = asyncio.ensure_future(self._server.stop(seconds))
        finished = asyncio.ensure_future(self._inference.finished())
        await asyncio.wait({stopping, finished}, return_when=asyncio.FIRST_COMPLETED)
        finished.cancel()
        self._long_lived.terminate()
        await stopping


def _connection_options(limits: ConnectionLimits) -> list[tuple[str, int]]:
    timed = {
        "grpc.max_connection_idle_ms": limits.idle,
        "grpc.max_connection_age_ms": limits.age,
        "grpc.max_connection_age_grace_ms": limits.age_grace,
    }
    return [
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        # Both: between the first, if lower, and the second gRPC refuses at random, the more often the larger they are.
        ("grpc.max_metadata_size", limits.metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
        ("grpc.max_concurrent_streams", limits.streams),
        *((name, max(1, round(seconds * 1000))) for name, seconds in timed.items() if seconds),
    ]


def _handlers(rpcs: Rpcs, shared_memory: SharedMemory, fanout: WorkerFanout | None) -> grpc.GenericRpcHandler:
    """The service's handlers. Messages arrive as bytes: inferd parses them, so a malformed
    one is inferd's INVALID_ARGUMENT and not the library's traceback, and parsing is timed."""
    inference, metadata, control = rpcs.inference, rpcs.metadata, rpcs.control
    unary: dict[str, Unary] = {
        "ServerLive": metadata.server_live,
        "ServerReady": metadata.server_ready,
        "ModelReady": metadata.model_ready,
        "ServerMetadata": metadata.server_metadata,
        "ModelMetadata": metadata.model_metadata,
        "ModelConfig": metadata.model_config,
        "ModelStatistics": metadata.model_statistics,
        "RepositoryIndex": metadata.repository_index,
        "RepositoryModelLoad": control.load,
        "RepositoryModelUnload": control.unload,
        "SystemSharedMemoryStatus": shared_memory.system_status,
        "SystemSharedMemoryRegister": shared_memory.system_register,
        "SystemSharedMemoryUnregister": shared_memory.system_unregister,
        "CudaSharedMemoryStatus": shared_memory.cuda_status,
        "CudaSharedMemoryRegister": shared_memory.cuda_register,
        "CudaSharedMemoryUnregister": shared_memory.cuda_unregister,
        "TraceSetting": metadata.trace_setting,
        "LogSettings": metadata.log_settings,
    }
    methods = _unary(unary, pb.DESCRIPTOR.services_by_name["GRPCInferenceService"], fanout)
    methods["ModelInfer"] = grpc.unary_unary_rpc_method_handler(inference.model_infer)
    methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(inference.model_stream_infer)
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _tuner_handlers(tuner: TunerControl, fanout: WorkerFanout | None) -> grpc.GenericRpcHandler:
    methods = _unary(tuner.methods, tuner_pb2.DESCRIPTOR.services_by_name["Tuner"], fanout)
    return grpc.method_handlers_generic_handler(TUNER_SERVICE, methods)


def _unary(
    run: dict[str, Unary], service: ServiceDescriptor, fanout: WorkerFanout | None
) -> dict[str, grpc.RpcMethodHandler]:
    """A handler for each method of ``service`` in ``run``."""
    messages = {m.name: GetMessageClass(m.input_type) for m in service.methods}
    answers = {name: _guarded(r, messages[name]) for name, r in run.items()}
    if fanout is not None:
        answers = {name: fanout.wrap(f"/{service.full_name}/{name}", answer) for name, answer in answers.items()}
    return {name: grpc.unary_unary_rpc_method_handler(answer) for name, answer in answers.items()}


def _is_news(record: logging.LogRecord) -> bool:
    """False for what gRPC logs when a client leaves just as its response is sent, as at a deadline known to both."""
    return not record.getMessage().startswith("ExecuteBatchError raised in core by servicer method")


def _guarded(run: Unary, message: type[Message]) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]:
    """``run`` with parsing before and the error table after."""

    async def answer(raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            return (await run(codec.parse(raw, message), context)).SerializeToString()
        except InferdError as error:
            await status.abort(context, error)
        except Exception:
            log.exception("call failed unexpectedly", method=message.DESCRIPTOR.name)
            await status.abort(context, InternalFault())

    return answer
