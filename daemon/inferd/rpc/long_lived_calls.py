"""Ends the calls that would outlast a drain, such as a health watch, once the inferences have ended.

A health watch lasts as long as its client likes, and stopping would wait for it.
grpc.aio's own way, stopping a second time with a shorter grace, can crash the process:
the later of two stops cancels calls on a server that the other has freed
(``AioServer.shutdown``, seen with grpcio 1.85).
"""

import asyncio
from collections.abc import Awaitable, Callable
from inspect import isasyncgen
from typing import Any

import grpc

from inferd.errors import Draining
from inferd.rpc import status
from inferd.rpc.services import Service

# The attribute with a handler's behaviour, by whether requests and responses are streams.
HANDLER_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class LongLivedCalls(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """Ends the open calls of all methods of ``inner`` but ``exempt`` with UNAVAILABLE, on :meth:`terminate`."""

    def __init__(self, inner: Service, exempt: frozenset[str]) -> None:
        self._inner = inner
        self._exempt = exempt
        self._terminated = asyncio.Event()
        # Cached by method: the number of methods bounds it.
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}

    def terminate(self) -> None:
        """End the calls now. Harmless when called again."""
        self._terminated.set()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """As :meth:`Service.service`."""
        method = details.method
        if (known := self._handlers.get(method)) is not None:
            return known
        handler = self._inner.service(details)
        if handler is None:
            return None
        if method not in self._exempt:
            kind = next(k for k in HANDLER_KINDS if getattr(handler, k))
            handler = handler._replace(**{kind: self._until_terminated(getattr(handler, kind))})
        self._handlers[method] = handler
        return handler

    def _until_terminated(
        self, behaviour: Callable[[Any, grpc.aio.ServicerContext], Any]
    ) -> Callable[..., Awaitable[Any]]:
        async def run(request: Any, context: grpc.aio.ServicerContext) -> Any:
            answering = asyncio.ensure_future(_answer(behaviour(request, context), context))
            terminating = asyncio.ensure_future(self._terminated.wait())
            try:
                await asyncio.wait({answering, terminating}, return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    return answering.result()
            finally:
                answering.cancel()
                terminating.cancel()
            return await status.abort(context, Draining())

        return run


async def _answer(answers: Any, context: grpc.aio.ServicerContext) -> Any:
    """A handler is a coroutine, or a generator of messages to write."""
    if not isasyncgen(answers):
        return await answers
    async for message in answers:
        await context.write(message)
    return None
