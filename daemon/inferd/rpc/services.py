"""All RPCs of the server as one: what gRPC asks for the handler of each call.

Not interceptors, which gRPC awaits one after the other for each call: a handler is found by asking the outermost of
some that each know the next, without a coroutine in between (docs/decisions/0016).
"""

from collections.abc import Iterable
from typing import Protocol

import grpc


class Service(Protocol):
    """Whoever knows the handlers of some RPCs."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of that call, None where there is no such RPC."""


class Services(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """Several services, in the order that they were added; takes a server's place where libraries add theirs."""

    def __init__(self) -> None:
        self._added: list[Service] = []

    def add_generic_rpc_handlers(self, handlers: Iterable[Service]) -> None:
        """As a server has it."""
        self._added += handlers

    def add_registered_method_handlers(self, name: str, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        """As a server has it; the same are added as generic ones."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """The handler of the first who has one."""
        for added in self._added:
            if (handler := added.service(details)) is not None:
                return handler
        return None
