"""Counts the calls whose request never arrived whole: too large, cancelled or past its deadline on the way.

gRPC ends these itself and calls no handler, so neither side's metrics know about them. But each
call has a handler object of its own, made here as it arrives and freed as it
ends: if that was never asked for its function, there was no request.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import grpc

from inferd.dispatcher import Observer
from inferd.errors import NotReceived
from inferd.metrics.instruments import OTHER
from inferd.requests import Observation, Stages
from inferd.rpc.services import Service


class UnreadCalls(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """Watches the unary ``method`` of ``inner``; reports the calls that were never read."""

    def __init__(self, inner: Service, method: str, observe: Observer) -> None:
        self._inner = inner
        self._method = method
        self._observe = observe
        self._loop = asyncio.get_running_loop()

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler | _WatchedHandler | None":
        """As :meth:`Service.service`."""
        handler = self._inner.service(details)
        # Another kind of handler refuses the call and counts that itself, see rpc/gate.
        if handler is None or details.method != self._method or handler.unary_unary is None:
            return handler
        return _WatchedHandler(handler.unary_unary, self._not_received, self._loop)

    def _not_received(self, arrived: int) -> None:
        stages = Stages(received=arrived, answered=time.monotonic_ns())
        self._observe(Observation(OTHER, "", NotReceived.outcome, stages, error=NotReceived()))


class _WatchedHandler:
    """The handler of one call of ``behaviour``, which takes bytes, from the call's first bytes to its end."""

    __slots__ = ("_at", "_behaviour", "_loop", "_not_received", "_read")

    # The attributes of grpc.RpcMethodHandler.
    request_streaming = response_streaming = False
    request_deserializer = response_serializer = unary_stream = stream_unary = stream_stream = None

    def __init__(
        self,
        behaviour: Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]],
        not_received: Callable[[int], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._behaviour = behaviour
        self._not_received = not_received
        self._loop = loop
        self._at = time.monotonic_ns()
        self._read = False

    @property
    def unary_unary(self) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]:
        """The function to call; gRPC asks for it once the request is there."""
        self._read = True
        return self._behaviour

    def __del__(self) -> None:
        # The garbage collector may run on any thread, and counting is the loop's.
        if not self._read and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._not_received, self._at)
