"""The one gate in front of every RPC: methods that the table does not list are denied.

An RPC added anywhere, by inferd or by a library's service, stays closed until it is put into
the table, so no alternate path can appear unnoticed (CVE-2026-24206, CVE-2026-24207).
"""

import hmac
import time
from collections.abc import Collection, Iterable, Sequence
from contextvars import ContextVar
from enum import Enum
from typing import Any, NoReturn

import grpc

from inferd.dispatcher import Observer
from inferd.errors import InferdError, NotAllowed, NotAuthenticated, OutOfScope
from inferd.metrics.instruments import OTHER
from inferd.requests import Observation, Stages
from inferd.rpc import status
from inferd.rpc.long_lived_calls import HANDLER_KINDS
from inferd.rpc.services import Service
from inferd.security.credentials import Credentials

SERVICE = "inference.GRPCInferenceService"


class Access(Enum):
    """Who may call: every client that can connect, or clients with the scope of that name if clients must
    authenticate. The last two are also closed until the server is started with their flag."""

    OPEN = "open"
    INFER = "infer"
    READ = "read"
    REPOSITORY = "repository"
    TUNER = "tuner"


_FLAGS = {Access.REPOSITORY: "--repository-control", Access.TUNER: "--tuner-control"}

_OF_THE_PROTOCOL = {
    # Health checkers can't send tokens.
    "ServerLive": Access.OPEN,
    "ServerReady": Access.OPEN,
    "ModelReady": Access.OPEN,
    "ServerMetadata": Access.READ,
    "ModelMetadata": Access.READ,
    "ModelConfig": Access.READ,
    "ModelStatistics": Access.READ,
    "ModelInfer": Access.INFER,
    "ModelStreamInfer": Access.INFER,
    "RepositoryIndex": Access.READ,
    "RepositoryModelLoad": Access.REPOSITORY,
    "RepositoryModelUnload": Access.REPOSITORY,
    "SystemSharedMemoryStatus": Access.INFER,
    "SystemSharedMemoryRegister": Access.INFER,
    "SystemSharedMemoryUnregister": Access.INFER,
    "CudaSharedMemoryStatus": Access.INFER,
    "CudaSharedMemoryRegister": Access.INFER,
    "CudaSharedMemoryUnregister": Access.INFER,
    "TraceSetting": Access.READ,
    "LogSettings": Access.READ,
}
TUNER_SERVICE = "inferd.Tuner"
_TUNER = {
    "Status": Access.READ,
    "Explain": Access.READ,
    "Export": Access.READ,
    "Pin": Access.TUNER,
    "Rollback": Access.TUNER,
    "Tune": Access.TUNER,
}
_OF_LIBRARIES = {
    "/grpc.health.v1.Health/Check": Access.OPEN,
    "/grpc.health.v1.Health/Watch": Access.OPEN,
    # It lists the models.
    "/grpc.health.v1.Health/List": Access.READ,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Access.READ,
    "/grpc.channelz.v1.Channelz/GetTopChannels": Access.READ,
    "/grpc.channelz.v1.Channelz/GetServers": Access.READ,
    "/grpc.channelz.v1.Channelz/GetServer": Access.READ,
    "/grpc.channelz.v1.Channelz/GetServerSockets": Access.READ,
    "/grpc.channelz.v1.Channelz/GetChannel": Access.READ,
    "/grpc.channelz.v1.Channelz/GetSubchannel": Access.READ,
    "/grpc.channelz.v1.Channelz/GetSocket": Access.READ,
}

ACCESS: dict[str, Access] = {
    **{f"/{SERVICE}/{name}": access for name, access in _OF_THE_PROTOCOL.items()},
    **{f"/{TUNER_SERVICE}/{name}": access for name, access in _TUNER.items()},
    **_OF_LIBRARIES,
}

# A refused call of these is an inference request that ended.
_COUNTED = frozenset({f"/{SERVICE}/ModelInfer", f"/{SERVICE}/ModelStreamInfer"})

# The proved name of the caller of the call in progress; empty without authentication.
PRINCIPAL: ContextVar[str] = ContextVar("principal", default="")

# The metadata by which a worker of the same server identifies itself, and names the caller it calls for.
SECRET_KEY, PRINCIPAL_KEY = "inferd-worker-secret", "inferd-worker-principal"


class Gate(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """Passes to ``inner`` the calls that :data:`ACCESS` opens to their caller.

    ``enabled`` has the flags that were given.
    ``credentials`` know the callers, if any are configured. Refused inferences are reported to ``observe``.
    A call refused before its caller is known has its message left unread, however long.
    A call with ``secret``, unless that is empty, comes from another worker of this server, which has admitted it.
    """

    def __init__(
        self,
        inner: Service,
        *,
        enabled: Collection[Access] = (),
        credentials: Credentials | None = None,
        observe: Observer = lambda _: None,
        secret: str = "",
    ) -> None:
        self._inner = inner
        self._closed = _FLAGS.keys() - set(enabled)
        # Open to every client as long as none must authenticate; workers name the caller of what they pass on.
        guarded = _FLAGS.keys() if secret else self._closed
        self._ungated = {method for method, access in ACCESS.items() if access not in guarded}
        self._credentials = credentials if credentials is not None else Credentials()
        self._observe = observe
        self._secret = secret

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of an RPC for callers who may call it, for others one that refuses."""
        method = details.method
        if method in self._ungated and self._credentials.authority is None:
            return self._inner.service(details)
        access = ACCESS.get(method)
        if access is None:
            if self._inner.service(details) is None:
                return None  # no such method: gRPC answers UNIMPLEMENTED
            return self._denial(method, NotAllowed(_short(method)))
        authorization = _authorization(details.invocation_metadata) if self._credentials.takes_tokens else None
        try:
            if access is Access.OPEN or self._forwarded(details.invocation_metadata):
                return self._inner.service(details)
            if authorization is None and self._credentials.verifies_clients:
                # Only the call itself has the client's certificate.
                return self._checked(self._inner.service(details), method, access)
            self._admit(method, access, authorization, ())
        except InferdError as error:
            return self._denial(method, error)
        return self._inner.service(details)

    def _forwarded(self, metadata: Iterable[tuple[str, str | bytes]] | None) -> bool:
        """Whether another worker makes the call, for a caller that it has admitted."""
        if not self._secret or not is_sibling(metadata, self._secret):
            return False
        PRINCIPAL.set(next((str(value) for key, value in metadata or () if key == PRINCIPAL_KEY), ""))
        return True

    def _admit(self, method: str, access: Access, authorization: str | None, names: Sequence[str]) -> None:
        """Raises the error to answer with unless the call may be made."""
        if (authority := self._credentials.authority) is not None:
            identity = authority.identify(authorization, names, time.time())
            identity.check(access.value, _short(method))
            PRINCIPAL.set(identity.name)
        if access in self._closed:
            raise NotAllowed(_short(method), f"start the server with {_FLAGS[access]}")

    def _checked(self, handler: grpc.RpcMethodHandler, method: str, access: Access) -> grpc.RpcMethodHandler:
        """``handler`` for callers whose certificate opens it. LongLivedCalls has made its behaviour a coroutine
        function."""
        if handler is None:
            return None
        kind = next(k for k in HANDLER_KINDS if getattr(handler, k))
        behaviour = getattr(handler, kind)

        async def checked(request: Any, context: grpc.aio.ServicerContext) -> Any:
            try:
                self._admit(method, access, None, _names(context))
            except InferdError as error:
                await self._refuse(method, error, context)
            return await behaviour(request, context)

        return handler._replace(**{kind: checked})

    def _denial(self, method: str, error: InferdError) -> grpc.RpcMethodHandler:
        async def deny(_: object, context: grpc.aio.ServicerContext) -> None:
            await self._refuse(method, error, context)

        # On the wire all four kinds of calls are alike, and this one reads nothing unless asked.
        return grpc.stream_stream_rpc_method_handler(deny)

    async def _refuse(self, method: str, error: InferdError, context: grpc.aio.ServicerContext) -> NoReturn:
        if isinstance(error, NotAuthenticated | OutOfScope):
            self._credentials.denied_calls.add("grpc", _short(method), error, context.peer())
        if method in _COUNTED:
            now = time.monotonic_ns()
            self._observe(Observation(OTHER, "", error.outcome, Stages(received=now, answered=now), error=error))
        await status.abort(context, error)


def is_sibling(metadata: Iterable[tuple[str, str | bytes]] | None, secret: str) -> bool:
    """Whether a call with this ``metadata`` comes from another worker of the same server."""
    shown = (value for key, value in metadata or () if key == SECRET_KEY)
    return any(hmac.compare_digest(str(value).encode(), secret.encode()) for value in shown)


def _short(method: str) -> str:
    return method.rpartition("/")[2]


def _authorization(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    """The value of that metadata key; None without it."""
    said = [value for key, value in metadata or () if key == "authorization"]
    # Joined as HTTP joins repeated headers; no token looks like that.
    return ",".join(str(value) for value in said) if said else None


def _names(context: grpc.aio.ServicerContext) -> list[str]:
    """The names in the client's certificate, which the handshake has verified: its subject alternative
    names or, if it has none, its common name."""
    return [name.decode(errors="replace") for name in context.peer_identities() or () if name]
