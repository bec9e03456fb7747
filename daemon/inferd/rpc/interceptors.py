"""The one gate in front of every RPC: what the table does not name is denied.

An RPC added anywhere, by us or by a library's service, stays closed until it is put into
the table, so no alternate path can appear unnoticed (CVE-2026-24206, CVE-2026-24207).
"""

from collections.abc import Awaitable, Callable, Collection
from enum import Enum

import grpc

from inferd.errors import NotAllowed
from inferd.rpc import status

SERVICE = "inference.GRPCInferenceService"


class Access(Enum):
    """Who may call: everyone who can connect, or nobody unless the control of that name is switched on."""

    OPEN = "open"
    REPOSITORY = "--repository-control"
    TUNER = "--tuner-control"


_OPEN = (
    "ServerLive",
    "ServerReady",
    "ModelReady",
    "ServerMetadata",
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
    "ModelInfer",
    "ModelStreamInfer",
    "RepositoryIndex",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
)
_REPOSITORY = ("RepositoryModelLoad", "RepositoryModelUnload")
TUNER_SERVICE = "inferd.Tuner"
_TUNER = {
    "Status": Access.OPEN,
    "Explain": Access.OPEN,
    "Export": Access.OPEN,
    "Pin": Access.TUNER,
    "Rollback": Access.TUNER,
    "Tune": Access.TUNER,
}
_BESIDE = (
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/grpc.channelz.v1.Channelz/GetTopChannels",
    "/grpc.channelz.v1.Channelz/GetServers",
    "/grpc.channelz.v1.Channelz/GetServer",
    "/grpc.channelz.v1.Channelz/GetServerSockets",
    "/grpc.channelz.v1.Channelz/GetChannel",
    "/grpc.channelz.v1.Channelz/GetSubchannel",
    "/grpc.channelz.v1.Channelz/GetSocket",
)

ACCESS: dict[str, Access] = {
    **{f"/{SERVICE}/{name}": Access.OPEN for name in _OPEN},
    **{f"/{SERVICE}/{name}": Access.REPOSITORY for name in _REPOSITORY},
    **{f"/{TUNER_SERVICE}/{name}": access for name, access in _TUNER.items()},
    **dict.fromkeys(_BESIDE, Access.OPEN),
}


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc ships no types
    """Lets through what :data:`ACCESS` opens, and what the controls in ``switched_on`` are for."""

    def __init__(self, switched_on: Collection[Access] = ()) -> None:
        self._through = {Access.OPEN, *switched_on}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        if ACCESS.get(details.method) in self._through:
            return await continuation(details)
        handler = await continuation(details)
        if handler is None:
            return None  # no such method: gRPC answers UNIMPLEMENTED
        return _denial(handler, details.method)


def _denial(handler: grpc.RpcMethodHandler, method: str) -> grpc.RpcMethodHandler:
    access = ACCESS.get(method, Access.OPEN)
    remedy = f"start the server with {access.value}" if access is not Access.OPEN else ""
    error = NotAllowed(method.rpartition("/")[2], remedy)

    async def deny(_: object, context: grpc.aio.ServicerContext) -> None:
        await status.abort(context, error)

    make = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[handler.request_streaming, handler.response_streaming]
    return make(deny)
