"""The parts of gRPC's core that grpcio wraps and does not publish; nothing else of inferd imports them.

pyproject.toml has the range of grpcio that they are known in. Another version may lack one: then this module can't be
imported, and says so.
"""

from typing import Any

import grpc

try:
    from grpc._cython.cygrpc import (
        CompletionQueue,
        ReceiveCloseOnServerOperation,
        ReceiveMessageOperation,
        SendInitialMetadataOperation,
        SendMessageOperation,
        SendStatusFromServerOperation,
        Server,
        peer_identities,
    )
except ImportError as error:
    raise ImportError(
        f"inferd serves on gRPC's completion queue, and grpcio {grpc.__version__} has another one ({error}); "
        "install a version that inferd's package allows"
    ) from error

__all__ = [
    "OK",
    "CompletionQueue",
    "ReceiveCloseOnServerOperation",
    "ReceiveMessageOperation",
    "SendInitialMetadataOperation",
    "SendMessageOperation",
    "SendStatusFromServerOperation",
    "Server",
    "peer",
    "peer_identities",
]

OK: int = grpc.StatusCode.OK.value[0]


def peer(call: Any) -> str:
    """The other end of ``call``'s connection, as gRPC names it: ``ipv4:127.0.0.1:5000``."""
    return call.peer().decode(errors="replace")  # type: ignore[no-any-return]
