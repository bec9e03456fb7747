"""Sends inference requests that are bytes already, many at a time, and tells how each of them ended.

For load: nothing is serialised or parsed that need not be, and there is no task a request.
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
"""Told the name of the gRPC code, OK among them, on the loop."""

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
_CHANNEL_OPTIONS = [
    # A connection of its own for each channel: grpc would let channels of one target share it.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    # What the server refuses is to be counted, not tried again.
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
]
_CONNECT_TIMEOUT = 10.0
# For a server to end a stream that has no more requests.
_GOODBYE = 1.0
# What a serialised ModelStreamInferResponse begins with where its first field, the error message, is not empty.
_ERROR_TAG = 0x0A


class LoadChannel(Protocol):
    """A way to the server."""

    def start(self, request: bytes, ended: OnEnded) -> None:
        """Send ``request``, a serialised ModelInferRequest; ``ended`` is called once, later."""

    def give_up(self) -> None:
        """Cancel what has not ended: it then ends as CANCELLED."""

    async def close(self) -> None:
        """Nothing more will be sent."""


@asynccontextmanager
async def open_channels(
    target: str, connections: int, *, stream: bool, deadline: float | None, credentials: ClientCredentials
) -> AsyncIterator[list[LoadChannel]]:
    """As many channels to ``target``, HOST:PORT, each over a connection of its own: unary calls, or one stream each.

    ``deadline`` is each unary call's, in seconds. Raises CallFailed where no connection is made.
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
    """ModelInfer, a call a request."""

    def __init__(
        self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...], deadline: float | None
    ) -> None:
        # Bytes go out and come in as they are.
        self._infer = channel.unary_unary(f"/{_SERVICE}/ModelInfer")
        self._metadata = metadata
        self._deadline = deadline
        self._calls: set[grpc.aio.UnaryUnaryCall] = set()

    def start(self, request: bytes, ended: OnEnded) -> None:
        call = self._infer(request, timeout=self._deadline, metadata=self._metadata)
        # grpc cancels a call that nobody holds on to.
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
    """ModelStreamInfer: one stream, whose answers come in the order of their requests. A broken one is replaced."""

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
        # Reading is another task's: where a full window stops this, answers have to go on making room.
        try:
            while self._unsent and self._call is call:
                await call.write(self._unsent.popleft())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            pass  # the reader learns why, and tells

    async def _read(self, call: grpc.aio.StreamStreamCall) -> None:
        code = "UNAVAILABLE"
        try:
            while (answer := await call.read()) is not grpc.aio.EOF:
                # More answers than requests are a decoupled model's, which this does not understand.
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
    """The code of one answer of a stream; parsed only where it says that something is wrong."""
    if answer[:1] != bytes((_ERROR_TAG,)):
        return "OK"
    message = pb.ModelStreamInferResponse.FromString(answer).error_message
    # inferd's way of saying which; Triton's only says what.
    name = message[1:].partition("]")[0] if message.startswith("[") else ""
    return name if name in grpc.StatusCode.__members__ else "UNKNOWN"


def _at_once(coroutine: Coroutine[Any, Any, grpc.StatusCode]) -> grpc.StatusCode:
    """What ``coroutine``, of a call that has ended, returns: it waits for nothing, and so needs no task."""
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
