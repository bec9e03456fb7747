"""Sends serialised inference requests, many at a time, and reports how each of them ended.

For load generation: nothing is serialised or parsed unnecessarily, and a request has no task of its own.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Protocol

import grpc

from inferd._pb import open_inference_pb2 as pb
from inferd.rpc.rpc_client import CallFailed
from inferd.security.client_credentials import ClientCredentials

OnEnded = Callable[[str], None]
"""Called on the loop with the name of the gRPC code, OK included."""

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_CHANNEL_OPTIONS = [
    # A connection of its own for each channel: grpc would let channels of one target share one.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    # Refusals by the server must be counted, not retried.
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
]
_CONNECT_TIMEOUT = 10.0
# For a server to end a stream that has no more requests.
_GOODBYE = 1.0
# A serialised ModelStreamInferResponse begins with this if its first field, the error message, is not empty.
_ERROR_TAG = 0x0A


class LoadChannel(Protocol):
    """A connection to the server."""

    def start(self, request: bytes, ended: OnEnded) -> None:
        """Send ``request``, a serialised ModelInferRequest; ``ended`` is called once, later."""

    def give_up(self) -> None:
        """Cancel the requests that have not ended: they then end as CANCELLED."""

    async def close(self) -> None:
        """Close; no more requests will be sent."""


@asynccontextmanager
async def open_channels(
    target: str, connections: int, *, stream: bool, deadline: float | None, credentials: ClientCredentials
) -> AsyncIterator[list[LoadChannel]]:
    """Channels to ``target``, HOST:PORT, each over a connection of its own: for unary calls, or with one stream each.

    ``deadline`` is each unary call's, in seconds. Raises CallFailed if a connection can't be made.
    """
    metadata = (("authorization", credentials.authorization),) if credentials.token else ()
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(_channel(target, credentials)) for _ in range(connections)]
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                await asyncio.gather(*(channel.channel_ready() for channel in channels))
        except TimeoutError:
            raise CallFailed("UNAVAILABLE", f"no connection to {target} in {_CONNECT_TIMEOUT:g} s") from None
        made: list[LoadChannel] = [
            _StreamChannel(channel, metadata) if stream else _UnaryChannel(channel, metadata, deadline)
            for channel in channels
        ]
        try:
            yield made
        finally:
            for one in made:
                await one.close()


class _UnaryChannel:
    """ModelInfer, one call for each request."""

    def __init__(
        self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...], deadline: float | None
    ) -> None:
        # Bytes are sent and received unchanged.
        self._infer = channel.unary_unary(f"/{_SERVICE}/ModelInfer")
        self._metadata = metadata
        self._deadline = deadline
        self._calls: set[grpc.aio.UnaryUnaryCall] = set()

    def start(self, request: bytes, ended: OnEnded) -> None:
        call = self._infer(request, timeout=self._deadline, metadata=self._metadata)
        # grpc cancels a call that has no references.
        self._calls.add(call)
        call.add_done_callback(partial(self._ended, ended))

    def _ended(self, ended: OnEnded, call: grpc.aio.UnaryUnaryCall) -> None:
        self._calls.discard(call)
        ended(_at_once(call.code()).name)

    def give_up(self) -> None:
        for call in list(self._calls):
            call.cancel()

    async def close(self) -> None:
        self.give_up()


class _StreamChannel:
    """ModelStreamInfer: one stream, whose responses come in the order of their requests. A broken one is replaced."""

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self._open = channel.stream_stream(f"/{_SERVICE}/ModelStreamInfer")
        self._metadata = metadata
        # None, or a StreamStreamCall: grpc ships no types.
        self._call: Any = None
        self._unsent: deque[bytes] = deque()
        self._unanswered: deque[OnEnded] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None

    def start(self, request: bytes, ended: OnEnded) -> None:
        if self._call is None:
            self._call = self._open(metadata=self._metadata)
            self._reader = asyncio.create_task(self._read(self._call))
        self._unanswered.append(ended)
        self._unsent.append(request)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(self._call))

    async def _write(self, call: grpc.aio.StreamStreamCall) -> None:
        # Another task reads: while a full window blocks this one, responses must keep making room.
        try:
            while self._unsent and self._call is call:
                await call.write(self._unsent.popleft())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            pass  # the reader gets the cause, and reports it

    async def _read(self, call: grpc.aio.StreamStreamCall) -> None:
        code = "UNAVAILABLE"
        try:
            while (answer := await call.read()) is not grpc.aio.EOF:
                # More responses than requests come from a decoupled model, which this does not support.
                if self._unanswered:
                    self._unanswered.popleft()(_code_in_stream(answer))
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        except asyncio.CancelledError:
            code = "CANCELLED"
        # A writer ends with its stream, if a moment later: what is sent next gets a stream, and a writer, of its own.
        if self._writer is not None:
            await self._writer
        self._call = None
        lost = list(self._unanswered)
        self._unanswered.clear()
        self._unsent.clear()
        for ended in lost:
            ended(code)

    def give_up(self) -> None:
        if self._call is not None:
            self._call.cancel()

    async def close(self) -> None:
        if self._call is not None and self._reader is not None and not self._unanswered:
            await self._call.done_writing()
            await asyncio.wait({self._reader}, timeout=_GOODBYE)
        self.give_up()
        for task in (self._writer, self._reader):
            if task is not None:
                await task


def _code_in_stream(answer: bytes) -> str:
    """The code of one response of a stream; parsed only if it reports an error."""
    if answer[:1] != bytes((_ERROR_TAG,)):
        return "OK"
    message = pb.ModelStreamInferResponse.FromString(answer).error_message
    # inferd sends the code; Triton only sends the message.
    name = message[1:].partition("]")[0] if message.startswith("[") else ""
    return name if name in grpc.StatusCode.__members__ else "UNKNOWN"


def _at_once(coroutine: Coroutine[Any, Any, grpc.StatusCode]) -> grpc.StatusCode:
    """The result of ``coroutine``, of a call that has ended: it waits for nothing, and so needs no task."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        code: grpc.StatusCode = stop.value
        return code
    raise AssertionError("a call that had ended did not know its code")


def _channel(target: str, credentials: ClientCredentials) -> grpc.aio.Channel:
    if credentials.ca is None:
        return grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)
    name = [("grpc.ssl_target_name_override", credentials.server_name)] if credentials.server_name else []
    tls = grpc.ssl_channel_credentials(*credentials.pem())
    return grpc.aio.secure_channel(target, tls, options=[*_CHANNEL_OPTIONS, *name])
