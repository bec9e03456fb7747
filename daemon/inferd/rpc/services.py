"""All RPCs of the server as one: gRPC asks it for the handler of each call.

Not interceptors, which gRPC awaits one after another for each call: here each layer knows the next one, and asking the
outermost finds the handler, without a coroutine in between (docs/decisions/0016).
"""

from collections.abc import Iterable
from typing import Protocol

import grpc


class Service(Protocol):
    """Knows the handlers of some RPCs."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of that call, None if there is no such RPC."""


class Services(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """Several services, in the order that they were added; stands in for a server when libraries add their services."""

    def __init__(self) -> None:
        self._added: list[Service] = []

    def add_generic_rpc_handlers(self, handlers: Iterable[Service]) -> None:
        """As the method of a server."""
        self._added += handlers

    def add_registered_method_handlers(self, name: str, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        """As the method of a server; the same handlers are added as generic ones."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of the first service that has one."""
        for added in self._added:
            if (handler := added.service(details)) is not None:
                return handler
        return None
