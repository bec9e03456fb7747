"""Ends the calls that have no end of their own once the inferences are through.

A watch of health lasts as long as its client likes, and stopping would wait for it.
grpc.aio's own way, stopping a second time with a shorter grace, can crash the process:
whichever of two stops is late cancels calls on a server that the other has freed
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

# What a handler's behaviour is called, by whether requests and answers are streams.
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


class Cutoff(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """Answers whatever is still open on any method of ``inner`` but ``lasting`` UNAVAILABLE when told to."""

    def __init__(self, inner: Service, lasting: frozenset[str]) -> None:
        self._inner = inner
        self._lasting = lasting
        self._cut = asyncio.Event()
        # What was answered by method: as many as there are.
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}

    def cut(self) -> None:
        """Now. Harmless when called again."""
        self._cut.set()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """As :class:`Service` has it."""
        method = details.method
        if (known := self._handlers.get(method)) is not None:
            return known
        handler = self._inner.service(details)
        if handler is None:
            return None
        if method not in self._lasting:
            kind = next(k for k in KINDS if getattr(handler, k))
            handler = handler._replace(**{kind: self._until_cut(getattr(handler, kind))})
        self._handlers[method] = handler
        return handler

    def _until_cut(self, behaviour: Callable[[Any, grpc.aio.ServicerContext], Any]) -> Callable[..., Awaitable[Any]]:
        async def run(request: Any, context: grpc.aio.ServicerContext) -> Any:
            answering = asyncio.ensure_future(_answer(behaviour(request, context), context))
            cutting = asyncio.ensure_future(self._cut.wait())
            try:
                await asyncio.wait({answering, cutting}, return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    return answering.result()
            finally:
                answering.cancel()
                cutting.cancel()
            return await status.abort(context, Draining())

        return run


async def _answer(answers: Any, context: grpc.aio.ServicerContext) -> Any:
    """A handler is a coroutine, or a generator of messages to write."""
    if not isasyncgen(answers):
        return await answers
    async for message in answers:
        await context.write(message)
    return None
