"""gRPC's server on an event loop's completion queue: accepts calls as they come, and hands each to one function."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import structlog

from inferd.transport import core, floods
from inferd.transport.call import OpenCalls, ServerCall
from inferd.transport.event_loop import QueueEventLoop

log = structlog.get_logger("inferd.transport")

# Calls that may arrive before the loop looks. More wait in gRPC until it asks again, which it does first thing.
_OUTSTANDING = 64
_INTERNAL = grpc.StatusCode.INTERNAL.value[0]


class GrpcServer:
    """Listens from :meth:`listen` on, and calls ``handle`` with each call from :meth:`start` on, until :meth:`stop`.

    Made on a running :class:`QueueEventLoop`; TypeError on another. ``options`` are gRPC's for servers; ``calls`` are
    those that are open.
    """

    def __init__(self, handle: Callable[[ServerCall], None], options: Sequence[tuple[str, int]]) -> None:
        loop = asyncio.get_running_loop()
        if not isinstance(loop, QueueEventLoop):
            raise TypeError(f"a gRPC server needs a QueueEventLoop, not {type(loop).__name__}")
        self._loop = loop
        self._queue = loop.queue
        self._handle = handle
        self._server = core.Server(options, False)
        self._server.register_completion_queue(self._queue)
        self.calls = OpenCalls(self._client_ended)
        self._ended_by_clients = floods.EndedCalls()
        self._plain = True
        self._started = False
        self._stopping: asyncio.Future[None] | None = None

    def listen(self, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
        """Listen on ``address``; returns the port, of a socket file 1, and 0 if it can't."""
        self._plain = self._plain and credentials is None
        secure = () if credentials is None else (credentials._credentials,)  # noqa: SLF001 - as grpc's own servers do
        return int(self._server.add_http2_port(address.encode(), *secure))

    def start(self) -> None:
        """Accept calls."""
        self._begin()
        for _ in range(_OUTSTANDING):
            self._server.request_call(self._queue, self._queue, self._arrived)

    async def stop(self, grace: float) -> None:
        """Accept no more calls, tell clients to go elsewhere, and end the calls that are left after ``grace`` seconds.
        Harmless when called again, or without a start."""
        if self._stopping is None:
            self._stopping = self._loop.create_future()
            self._begin()  # gRPC stops, and closes the ports of, only what has started
            self._server.shutdown(self._queue, self._stopped)
        try:
            async with asyncio.timeout(grace):
                await asyncio.shield(self._stopping)
        except TimeoutError:
            self._server.cancel_all_calls()
            await asyncio.shield(self._stopping)
        # gRPC may report its end before the last calls' ends.
        await self.calls.none()

    def _begin(self) -> None:
        if not self._started:
            self._started = True
            # Without a queue of its own for the end: this one is polled until then.
            self._server.start(backup_queue=False)

    def _arrived(self, event: Any) -> None:
        if not event.success:
            return  # stopping
        if self._stopping is None:
            self._server.request_call(self._queue, self._queue, self._arrived)
        if self._ended_by_clients.over and core.peer(event.call) in self._ended_by_clients.over:
            return  # let go of without an answer, which costs least: gRPC cancels it
        self.calls.arrived()
        call = ServerCall(event, self.calls)
        try:
            self._handle(call)
        except Exception:
            log.exception("call failed unexpectedly", method=call.method)
            call.fail(_INTERNAL, "internal error; the server's log has the details")

    def _client_ended(self, call: ServerCall) -> None:
        if self._ended_by_clients.count(peer := call.peer(), time.monotonic_ns()):
            floods.cut_off(peer, plain=self._plain)

    def _stopped(self, _: object) -> None:
        if self._stopping is not None and not self._stopping.done():
            self._stopping.set_result(None)
