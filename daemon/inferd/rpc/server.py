"""Puts the RPCs, health, reflection and channelz behind one listening port."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Self

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from inferd import descriptors
from inferd._pb import open_inference_pb2 as pb
from inferd._pb import tuner_pb2
from inferd.catalog.catalog import Catalog
from inferd.config.daemon import Settings
from inferd.dispatcher import Observer
from inferd.errors import ConfigurationError
from inferd.lifecycle import Lifecycle, ModelState
from inferd.metrics.histogram import Histogram
from inferd.rpc import channelz, codec, health, reflection
from inferd.rpc.accept_wait_probe import AcceptWaitProbe
from inferd.rpc.call_tasks import CallTasks, Handler
from inferd.rpc.control import RepositoryControl
from inferd.rpc.fanout import WorkerFanout
from inferd.rpc.gate import SERVICE, TUNER_SERVICE, Access, Gate
from inferd.rpc.health import HealthService
from inferd.rpc.inference import Inference
from inferd.rpc.metadata import Metadata
from inferd.rpc.shared_memory import SharedMemory
from inferd.rpc.tuning import TunerControl
from inferd.scheduling.accept_wait import AcceptWait
from inferd.security.credentials import Credentials
from inferd.shared_memory.store import RegionStore
from inferd.transport.call import ServerCall
from inferd.transport.credentials import server_credentials
from inferd.transport.server import GrpcServer

# A connection on which TLS and HTTP/2 have not begun by then is closed: gRPC's own limit is two minutes.
_HANDSHAKE_MS = 20_000

# Calls that have arrived but were not handled yet. Above a thousand, gRPC cancels calls at random and counts them
# nowhere; which calls to refuse, and with which error, is for inferd to decide.
_PENDING = 100_000

_UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED.value[0]

Answer = Callable[[Any, ServerCall], Awaitable[Message]]


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
        """The limits that ``settings`` ask for, as far as files may be open."""
        return cls(
            descriptors.for_calls(settings.max_connections, descriptors.most_files()),
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
        self._rpcs = rpcs
        self._settings = settings
        self._inference = inference = rpcs.inference
        self._incoming = inference.incoming
        self._tasks = CallTasks()
        self._credentials = credentials if credentials is not None else Credentials()
        self._gate = Gate(
            enabled=settings.enabled,
            credentials=self._credentials,
            observe=observe,
            secret=fanout.secret if fanout is not None else "",
        )
        self._fanout = fanout
        self._stopping: asyncio.Task[None] | None = None
        self._server: GrpcServer | None = None
        wait = accept_wait if accept_wait is not None else AcceptWait()
        self._accept_wait_probe = AcceptWaitProbe(wait, lambda: inference.open_calls > 0)
        self._health = HealthService()
        self._handlers = self._all_handlers()

    def bind(self, address: str) -> int:
        """Listen on ``address``; returns the port. Raises ConfigurationError if it is taken."""
        self._server = GrpcServer(self._handle, _options(self._settings))
        port = self._server.listen(address, server_credentials(self._credentials))
        if not port:
            raise ConfigurationError(
                "grpc_bind", "", f"can't listen on {address}: the address is in use or not this machine's"
            )
        if self._fanout is not None:
            # In a folder that only this user can open, and for calls that another worker has admitted.
            self._server.listen(self._fanout.address)
        self._accept_wait_probe.bind(self._server)
        self._incoming.bind(self._server.calls)
        return port

    @property
    def accept_waits(self) -> Histogram:
        """How long the server's calls to itself waited before inferd saw them."""
        return self._accept_wait_probe.waits

    @property
    def connection_limit(self) -> int:
        """How many connections it takes at once."""
        return self._settings.connections.connections

    async def start(self) -> None:
        """Answer calls; health reports NOT_SERVING until :meth:`show_health`."""
        await self._health.show({"": False})
        if self._server is not None:
            self._server.start()
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
        if self._server is None:
            return
        stopping = asyncio.ensure_future(self._server.stop(seconds))
        finished = asyncio.ensure_future(self._inference.finished())
        await asyncio.wait({stopping, finished}, return_when=asyncio.FIRST_COMPLETED)
        finished.cancel()
        self._tasks.terminate()
        await stopping
        self._incoming.stop()

    def _handle(self, call: ServerCall) -> None:
        """The one way into every RPC."""
        method = call.method
        if (handler := self._handlers.get(method)) is None:
            if not self._accept_wait_probe.takes(method, call):
                call.fail(_UNIMPLEMENTED, "Method not found!")
        elif self._gate.admits(call):
            self._incoming.look()
            handler(call)

    def _all_handlers(self) -> dict[str, Handler]:
        tasks, rpcs = self._tasks, self._rpcs
        reflected = (SERVICE, TUNER_SERVICE, health.SERVICE, channelz.SERVICE)
        inferences = {
            "ModelInfer": rpcs.inference.model_infer,
            "ModelStreamInfer": rpcs.inference.model_stream_infer,
        }
        shared_memory = SharedMemory(rpcs.regions, self._credentials)
        return {
            **_named(SERVICE, inferences),
            **self._unary(_answers(rpcs, shared_memory), pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]),
            **self._unary(rpcs.tuner.methods, tuner_pb2.DESCRIPTOR.services_by_name["Tuner"]),
            **_named(health.SERVICE, self._health.handlers(tasks)),
            **_named(channelz.SERVICE, channelz.handlers(tasks)),
            **_named(reflection.SERVICE, reflection.handlers(tasks, reflected)),
        }

    def _unary(self, answers: Mapping[str, Answer], service: ServiceDescriptor) -> dict[str, Handler]:
        """A handler for each method of ``service`` in ``answers``, by full names."""
        kinds = {m.name: GetMessageClass(m.input_type) for m in service.methods}
        handlers = {}
        for name, answer in answers.items():
            method = f"/{service.full_name}/{name}"
            parsed = _parsed(answer, kinds[name])
            answer_bytes = parsed if self._fanout is None else self._fanout.wrap(method, parsed)
            empty = not kinds[name].DESCRIPTOR.fields
            handlers[method] = self._tasks.unread(answer_bytes) if empty else self._tasks.unary(answer_bytes)
        return handlers


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    """gRPC's for a server of ``settings``."""
    limits = settings.connections
    timed = {
        "grpc.max_connection_idle_ms": limits.idle,
        "grpc.max_connection_age_ms": limits.age,
        "grpc.max_connection_age_grace_ms": limits.age_grace,
    }
    return [
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
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        # Both: between the first, if lower, and the second gRPC refuses at random, the more often the larger they are.
        ("grpc.max_metadata_size", limits.metadata_bytes),
        ("grpc.absolute_max_metadata_size", limits.metadata_bytes),
        ("grpc.max_concurrent_streams", limits.streams),
        *((name, max(1, round(seconds * 1000))) for name, seconds in timed.items() if seconds),
    ]


def _answers(rpcs: Rpcs, shared_memory: SharedMemory) -> dict[str, Answer]:
    """The protocol's RPCs of one message and one answer, but for the inference."""
    metadata, control = rpcs.metadata, rpcs.control
    return {
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


def _named(service: str, handlers: Mapping[str, Handler]) -> dict[str, Handler]:
    """``handlers`` by the full names of their methods, which are ``service``'s."""
    return {f"/{service}/{name}": handler for name, handler in handlers.items()}


def _parsed(answer: Answer, kind: type[Message]) -> Callable[[bytes, ServerCall], Awaitable[bytes]]:
    """``answer`` on bytes. inferd parses them itself: a malformed message is an INVALID_ARGUMENT in its words."""

    async def answered(raw: bytes, call: ServerCall) -> bytes:
        return (await answer(codec.parse(raw, kind), call)).SerializeToString()

    return answered
