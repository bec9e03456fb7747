"""Lean clients: a request is serialised once, a response is not parsed, and each kind of transport gives *lanes*.

A lane is a coroutine function that sends one request and returns the bytes of the response. A closed loop calls each
lane again as soon as it has returned, so that as many requests are in flight as there are lanes.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from multiprocessing.shared_memory import SharedMemory
from typing import cast

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from benchmarks.open_loop import CHANNEL_OPTIONS, METHOD
from benchmarks.peers.workloads import Workload
from inferd._pb import open_inference_pb2 as pb

STREAM = METHOD.replace("ModelInfer", "ModelStreamInfer")
CHANNELS = 4
"""The most connections, and streams; a closed loop of fewer lanes has one for each lane."""
_OPTIONS = [*CHANNEL_OPTIONS, ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_PATIENCE, _CONNECT_PATIENCE = 30.0, 10.0
_ERROR = b"\x0a"
"""The first byte of a ModelStreamInferResponse with an error message, and of no other."""

Lane = Callable[[], Awaitable[bytes]]
Lanes = Callable[[str, Workload, int], AbstractAsyncContextManager[list[Lane]]]
"""HOST:PORT, the workload, the number of lanes."""


class Refused(Exception):
    """A response that is not the expected one, and its message."""


@dataclass(slots=True)
class Heard:
    """The responses to one closed loop while its window was open: latencies in seconds, and failures.

    ``rate`` is in responses a second, from the last response before the window opened to the last in it, so that the
    edges do not distort a window with few responses.
    """

    latencies: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0
    rate: float = 0.0


async def closed_loop(lanes: list[Lane], warm_up: float, seconds: float, at_edge: Callable[[], None]) -> Heard:
    """Keep all ``lanes`` busy for ``warm_up`` seconds, then for the ``seconds`` of the result.

    Calls ``at_edge`` when that window opens and when it closes. Lanes without a response in the end are errors.
    """
    heard, counting, over = Heard(), False, False
    answered = 0.0

    async def drive(lane: Lane) -> None:
        nonlocal answered
        while not over:
            begun = time.perf_counter()
            try:
                await lane()
            except (Refused, grpc.RpcError, OSError) as error:
                if counting:
                    heard.errors.append(in_words(error))
                await asyncio.sleep(0.05)
                continue
            if not over:
                answered = time.perf_counter()
            if counting:
                heard.latencies.append(answered - begun)

    driving = [asyncio.create_task(drive(lane)) for lane in lanes]
    try:
        await asyncio.sleep(warm_up)
        at_edge()
        counting, opened = True, time.perf_counter()
        before = answered or opened
        await asyncio.sleep(seconds)
        counting, over, heard.seconds = False, True, time.perf_counter() - opened
        at_edge()
        if answered > before:
            heard.rate = len(heard.latencies) / (answered - before)
        _, pending = await asyncio.wait(driving, timeout=_PATIENCE)
        heard.errors += [f"no answer within {_PATIENCE:.0f} s"] * len(pending)
    finally:
        for task in driving:
            task.cancel()
    return heard


def in_words(error: BaseException) -> str:
    """The error, in a line."""
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {(error.details() or '')[:200]}"
    return f"{type(error).__name__}: {str(error)[:200]}"


def tensor_of_response(data: bytes) -> npt.NDArray[np.float32]:
    """The tensor of a ModelInferResponse."""
    return tensor(pb.ModelInferResponse.FromString(data).raw_output_contents[0])


def tensor_of_stream(data: bytes) -> npt.NDArray[np.float32]:
    """The tensor of a ModelStreamInferResponse. Raises Refused with its error."""
    message = pb.ModelStreamInferResponse.FromString(data)
    if message.error_message:
        raise Refused(message.error_message)
    return tensor(message.infer_response.raw_output_contents[0])


def tensor(data: bytes) -> npt.NDArray[np.float32]:
    """The elements themselves."""
    return np.frombuffer(data, np.float32)


# -- gRPC -------------------------------------------------------------------------


async def _channels(stack: AsyncExitStack, target: str, lanes: int) -> list[grpc.aio.Channel]:
    channels = [
        await stack.enter_async_context(grpc.aio.insecure_channel(target, options=_OPTIONS))
        for _ in range(min(CHANNELS, lanes))
    ]
    async with asyncio.timeout(_CONNECT_PATIENCE):
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
    return channels


@asynccontextmanager
async def unary(target: str, workload: Workload, count: int) -> AsyncIterator[list[Lane]]:
    """ModelInfer, a call a request."""
    async with AsyncExitStack() as stack:
        calls = [channel.unary_unary(METHOD) for channel in await _channels(stack, target, count)]

        def lane(call: grpc.aio.UnaryUnaryMultiCallable) -> Lane:
            return lambda: call(workload.request, timeout=2 * _PATIENCE)

        yield [lane(call) for call in islice(cycle(calls), count)]


@asynccontextmanager
async def stream(target: str, workload: Workload, count: int) -> AsyncIterator[list[Lane]]:
    """ModelStreamInfer: a stream a connection, each with several requests in flight, answered in order."""
    async with AsyncExitStack() as stack:
        streams = []
        for channel in await _channels(stack, target, count):
            streams.append(_Stream(channel.stream_stream(STREAM)()))
            stack.push_async_callback(streams[-1].close)
        yield [partial(one.ask, workload.request) for one in islice(cycle(streams), count)]


class _Stream:
    def __init__(self, call: grpc.aio.StreamStreamCall) -> None:
        self._call = call
        self._waiting: deque[asyncio.Future[bytes]] = deque()
        self._writing = asyncio.Lock()
        self._reading = asyncio.create_task(self._read())

    async def ask(self, request: bytes) -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        async with self._writing:  # gRPC takes one message after the other
            self._waiting.append(answer)
            await self._call.write(request)
        return await answer

    async def _read(self) -> None:
        try:
            while (answer := await self._call.read()) is not grpc.aio.EOF:
                if answer.startswith(_ERROR):
                    said = pb.ModelStreamInferResponse.FromString(answer).error_message
                    self._waiting.popleft().set_exception(Refused(said))
                else:
                    self._waiting.popleft().set_result(answer)
            problem: Exception = Refused("the stream ended")
        except grpc.RpcError as error:
            problem = error
        while self._waiting:
            self._waiting.popleft().set_exception(problem)

    async def close(self) -> None:
        self._call.cancel()
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)


@asynccontextmanager
async def shared_memory(target: str, workload: Workload, count: int) -> AsyncIterator[list[Lane]]:
    """ModelInfer with tensors in system shared memory: all lanes read one input, and each has its own output.

    Raises grpc.aio.AioRpcError where the server takes no regions.
    """
    async with AsyncExitStack() as stack:
        channels = await _channels(stack, target, count)
        calls = [channel.unary_unary(METHOD) for channel in channels]

        def lane(call: grpc.aio.UnaryUnaryMultiCallable, place: _Place) -> Lane:
            async def ask() -> bytes:
                await call(place.message, timeout=2 * _PATIENCE)
                return place.answer()

            return ask

        places = await stack.enter_async_context(_shared(channels[0], workload, count))
        yield list(map(lane, cycle(calls), places))


@asynccontextmanager
async def streamed_shared_memory(target: str, workload: Workload, count: int) -> AsyncIterator[list[Lane]]:
    """The same by ModelStreamInfer, a stream a connection. Raises likewise."""
    async with AsyncExitStack() as stack:
        channels = await _channels(stack, target, count)
        places = await stack.enter_async_context(_shared(channels[0], workload, count))
        streams = [_Stream(channel.stream_stream(STREAM)()) for channel in channels]
        for one in streams:
            stack.push_async_callback(one.close)

        def lane(one: _Stream, place: _Place) -> Lane:
            async def ask() -> bytes:
                await one.ask(place.message)
                return place.answer()

            return ask

        yield list(map(lane, cycle(streams), places))


@dataclass(frozen=True, slots=True)
class _Place:
    """The request of one lane, and a function that reads the tensor of its response."""

    message: bytes
    answer: Callable[[], bytes]


@asynccontextmanager
async def _shared(channel: grpc.aio.Channel, workload: Workload, count: int) -> AsyncIterator[list[_Place]]:
    """Memory of ``count`` lanes, registered at the server as a region."""
    region = "bench"
    size = len(workload.body) + count * workload.answer.nbytes
    memory = SharedMemory(create=True, size=size)
    try:
        memory.buf[: len(workload.body)] = workload.body

        async def manage(method: str, message: Message) -> None:
            path = f"{METHOD.rpartition('/')[0]}/{method}"
            await channel.unary_unary(path)(message.SerializeToString(), timeout=_PATIENCE)

        register = pb.SystemSharedMemoryRegisterRequest(name=region, key=f"/{memory.name}", byte_size=size)
        await manage("SystemSharedMemoryRegister", register)

        def place(start: int) -> _Place:
            end = start + workload.answer.nbytes
            return _Place(_message(workload, region, start), lambda: bytes(memory.buf[start:end]))

        try:
            yield [place(len(workload.body) + number * workload.answer.nbytes) for number in range(count)]
        finally:
            await manage("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=region))
    finally:
        memory.close()
        memory.unlink()


def _message(workload: Workload, region: str, output_offset: int) -> bytes:
    message = pb.ModelInferRequest.FromString(workload.request)
    del message.raw_input_contents[:]
    places = (
        (message.inputs[0], len(workload.body), 0),
        (
            message.outputs.add(name=workload.output_name),
            workload.answer.nbytes,
            output_offset,
        ),
    )
    for tensor, size, offset in places:
        tensor.parameters["shared_memory_region"].string_param = region
        tensor.parameters["shared_memory_byte_size"].int64_param = size
        if offset:
            tensor.parameters["shared_memory_offset"].int64_param = offset
    return message.SerializeToString()


# -- HTTP -------------------------------------------------------------------------


@asynccontextmanager
async def http(target: str, workload: Workload, count: int) -> AsyncIterator[list[Lane]]:
    """POST of the input's bytes to the path of the model's name, one kept-alive connection a lane."""
    host, _, port = target.rpartition(":")
    head = (
        f"POST /{workload.name} HTTP/1.1\r\nHost: {target}\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Length: {len(workload.body)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        connections = []
        for _ in range(count):
            transport, connection = await loop.create_connection(
                lambda: _Connection(head.encode() + workload.body), host, int(port)
            )
            stack.callback(transport.abort)
            connections.append(connection)
        yield [connection.ask for connection in connections]


class _Connection(asyncio.Protocol):
    """One request after the other; a response must state its length."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._received = bytearray()
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def ask(self) -> Awaitable[bytes]:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            self._answer.set_exception(Refused("the connection was closed"))
        else:
            self._transport.write(self._request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, gap, body = self._received.partition(b"\r\n\r\n")
        if not gap or self._answer is None or self._answer.done():
            return
        lines = bytes(head).split(b"\r\n")
        status = lines[0].split()[1]
        length = next((int(v) for k, _, v in (line.partition(b":") for line in lines) if k.lower() == _LENGTH), None)
        if length is None:
            self._answer.set_exception(Refused(f"{lines[0].decode()} without a length"))
        elif len(body) >= length:
            self._received.clear()
            if status == b"200":
                self._answer.set_result(bytes(body))
            else:
                self._answer.set_exception(Refused(f"{lines[0].decode()}: {bytes(body[:200])!r}"))

    def connection_lost(self, problem: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Refused(f"the connection was lost: {problem}"))


_LENGTH = b"content-length"
