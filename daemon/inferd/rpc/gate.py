"""The one gate in front of every RPC: methods that the table does not list are denied.

An RPC added anywhere, by inferd or by a library's service, stays closed until it is put into
the table, so no alternate path can appear unnoticed (CVE-2026-24206, CVE-2026-24207).
"""

import hmac
import time
from collections.abc import Collection
from enum import Enum

from inferd.dispatcher import Observer
from inferd.errors import InferdError, NotAllowed, NotAuthenticated, OutOfScope
from inferd.metrics.instruments import OTHER
from inferd.requests import Observation, Stages
from inferd.rpc import status
from inferd.security.credentials import Credentials
from inferd.transport.call import Metadata, ServerCall

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

# The metadata by which a worker of the same server identifies itself, and names the caller it calls for.
SECRET_KEY, PRINCIPAL_KEY = "inferd-worker-secret", "inferd-worker-principal"


class Gate:
    """Admits the calls that :data:`ACCESS` opens to their caller, before anything of their message is received.

    ``enabled`` has the flags that were given.
    ``credentials`` know the callers, if any are configured. Refused inferences are reported to ``observe``.
    A call with ``secret``, unless that is empty, comes from another worker of this server, which has admitted it.
    """

    def __init__(
        self,
        *,
        enabled: Collection[Access] = (),
        credentials: Credentials | None = None,
        observe: Observer = lambda _: None,
        secret: str = "",
    ) -> None:
        self._closed = _FLAGS.keys() - set(enabled)
        # Open to every client as long as none must authenticate; workers name the caller of what they pass on.
        guarded = _FLAGS.keys() if secret else self._closed
        self._ungated = {method for method, access in ACCESS.items() if access not in guarded}
        self._credentials = credentials if credentials is not None else Credentials()
        self._observe = observe
        self._secret = secret

    def admits(self, call: ServerCall) -> bool:
        """Whether ``call``, of a method that exists, may be made; it knows its principal then. Ends it otherwise."""
        method = call.method
        if method in self._ungated and self._credentials.authority is None:
            return True
        try:
            self._check(method, call)
        except InferdError as error:
            self._refuse(method, error, call)
            return False
        return True

    def _check(self, method: str, call: ServerCall) -> None:
        """Raises the error to answer with unless the call may be made."""
        access = ACCESS.get(method)
        if access is None:
            raise NotAllowed(_short(method))
        if access is Access.OPEN:
            return
        if self._secret and is_sibling(call.metadata, self._secret):
            # Another worker makes the call, for a caller that it has admitted.
            call.principal = next((str(value) for key, value in call.metadata if key == PRINCIPAL_KEY), "")
            return
        if (authority := self._credentials.authority) is not None:
            authorization = _authorization(call.metadata) if self._credentials.takes_tokens else None
            names = _names(call) if authorization is None and self._credentials.verifies_clients else ()
            identity = authority.identify(authorization, names, time.time())
            identity.check(access.value, _short(method))
            call.principal = identity.name
        if access in self._closed:
            raise NotAllowed(_short(method), f"start the server with {_FLAGS[access]}")

    def _refuse(self, method: str, error: InferdError, call: ServerCall) -> None:
        if isinstance(error, NotAuthenticated | OutOfScope):
            self._credentials.denied_calls.add("grpc", _short(method), error, call.peer())
        if method in _COUNTED:
            now = time.monotonic_ns()
            self._observe(Observation(OTHER, "", error.outcome, Stages(received=now, answered=now), error=error))
        status.fail(call, error)


def is_sibling(metadata: Metadata, secret: str) -> bool:
    """Whether a call with this ``metadata`` comes from another worker of the same server."""
    shown = (value for key, value in metadata if key == SECRET_KEY)
    return any(hmac.compare_digest(str(value).encode(), secret.encode()) for value in shown)


def _short(method: str) -> str:
    return method.rpartition("/")[2]


def _authorization(metadata: Metadata) -> str | None:
    """The value of that metadata key; None without it."""
    said = [value for key, value in metadata if key == "authorization"]
    # Joined as HTTP joins repeated headers; no token looks like that.
    return ",".join(str(value) for value in said) if said else None


def _names(call: ServerCall) -> list[str]:
    return [name.decode(errors="replace") for name in call.peer_identities() if name]
