"""Messages on their way take no more memory than they may, and no more time."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd import cgroup
from inferd.config.daemon import Settings
from inferd.lifecycle import Phase
from inferd.rpc import incoming
from inferd.rpc.gate import SERVICE
from inferd.rpc.incoming import IncomingLimits, IncomingMessages
from inferd.tensors import DType
from inferd.transport import http2
from tests import models
from tests.event_loop import on_loop, until
from tests.rpc.parts import Parts
from tests.system.hostile_clients import cut_short
from tests.system.wire import request

INFER, STREAM, LIVE, READY = (
    f"/{SERVICE}/{name}" for name in ("ModelInfer", "ModelStreamInfer", "ServerLive", "ModelReady")
)
WATCH = "/grpc.health.v1.Health/Watch"
GOOD = request("m", {"x": np.zeros(4, np.float32)}).SerializeToString()
LARGE = request("m", {"x": np.zeros(1 << 16, np.float32)}).SerializeToString()
LIMIT = 1 << 30
EXHAUSTED, LATE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED
FULL = f"the server uses all {LIMIT} bytes of max_memory_bytes and takes no large requests; retry in 1000 ms"


class Serving:
    """A server whose memory is what ``used`` says, and which waits ``seconds`` for a message."""

    def __init__(self, root: Path, seconds: float) -> None:
        models.save(models.identity(DType.FP32, [-1]), root, "m")
        self.parts = Parts(root, {})
        self.used = 0
        inference = self.parts.inference
        inference.incoming = IncomingMessages(IncomingLimits(LIMIT, seconds), lambda: self.used)
        self.parts.server._incoming = inference.incoming
        self.outcomes: list[tuple[str, str]] = []
        inference._observe = lambda one: self.outcomes.append((one.outcome, one.reason))
        self.port = self.parts.server.bind("127.0.0.1:0")
        assert self.parts.server._server is not None
        self.calls = self.parts.server._server.calls


@asynccontextmanager
async def serving(root: Path, seconds: float = 60.0) -> AsyncIterator[tuple[Serving, grpc.aio.Channel]]:
    served = Serving(root, seconds)
    await served.parts.catalog.load_all()
    await served.parts.server.start()
    served.parts.lifecycle.move(Phase.READY)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            yield served, channel
    finally:
        await served.parts.server.stop(0)
        await served.parts.catalog.close()


@pytest.mark.parametrize("method", [INFER, READY, WATCH])
@on_loop
async def test_a_message_on_its_way_is_turned_away_when_memory_is_full(method: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as (served, channel):
        half_sent = channel.stream_unary(method)()
        await until(lambda: len(served.calls.receiving) == 1)
        served.used = LIMIT + 1
        assert await half_sent.code() is EXHAUSTED
        assert await half_sent.details() == FULL
        # Small requests are served meanwhile, and large ones again when there is room.
        infer = channel.unary_unary(INFER)
        assert await infer(GOOD)
        with pytest.raises(grpc.aio.AioRpcError, match="max_memory_bytes") as refused:
            await infer(LARGE)
        assert refused.value.code() is EXHAUSTED
        served.used = LIMIT
        await until(lambda: not served.parts.inference.incoming._full)
        assert await infer(LARGE)
        await until(lambda: not served.parts.inference.open_calls)
    counted = [("overloaded", "memory")] * (1 if method != INFER else 2)
    assert served.outcomes == counted


@on_loop
async def test_messages_that_hold_too_much_together_are_turned_away_the_largest_first(tmp_path: Path) -> None:
    async with serving(tmp_path) as (served, channel), AsyncExitStack() as stack:
        served.parts.inference.incoming._limits = IncomingLimits(LIMIT, 60.0, 300_000)
        ends = []
        for most in (150_000, 600_000):
            address = await stack.enter_async_context(cut_short(f"127.0.0.1:{served.port}", most))
            other = await stack.enter_async_context(grpc.aio.insecure_channel(address))
            ends.append(other.stream_unary(INFER)())
        # Both are looked at before they have sent much.
        await until(lambda: len(served.parts.inference.incoming._held._counted) == 2)
        writing = [asyncio.ensure_future(call.write(bytes(900_000))) for call in ends]
        assert await ends[1].code() is EXHAUSTED
        assert await ends[1].details() == (
            "requests on their way hold all 300000 bytes of max_incoming_bytes; retry in 1000 ms"
        )
        # What is delivered meanwhile does not count.
        infer = channel.unary_unary(INFER)
        for _ in range(20):
            await infer(LARGE)
        assert not ends[0].done()
        assert len(served.calls.receiving) == 1
        await stack.aclose()
        await asyncio.wait(writing)
        await until(lambda: not served.parts.inference.open_calls)
    assert served.outcomes == [("overloaded", "memory"), ("aborted_receive", "")]


@on_loop
async def test_a_stream_is_turned_away_when_no_single_message_is_left(tmp_path: Path) -> None:
    async with serving(tmp_path) as (served, channel):
        stream = channel.stream_stream(STREAM)()
        await stream.write(GOOD)
        assert await stream.read() is not grpc.aio.EOF
        half_sent = channel.stream_unary(INFER)()
        await until(lambda: len(served.calls.receiving) == 1 == len(served.calls.receiving_streams))
        served.used = LIMIT + 1
        assert await half_sent.code() is EXHAUSTED
        assert await stream.code() is EXHAUSTED
        await until(lambda: not served.parts.inference.open_calls)


@on_loop
async def test_a_message_that_takes_too_long_ends_its_call_and_no_stream(tmp_path: Path) -> None:
    async with serving(tmp_path, seconds=0.2) as (served, channel):
        stream = channel.stream_stream(STREAM)()
        await stream.write(GOOD)
        for method in (INFER, READY, WATCH):
            late = channel.stream_unary(method)()
            assert await late.code() is LATE
            assert await late.details() == "the request did not arrive within the 0.2 s of message_timeout"
        assert await stream.read() is not grpc.aio.EOF
        await stream.done_writing()
        assert await stream.code() is grpc.StatusCode.OK
    assert served.outcomes == [("aborted_receive", "")]


@pytest.mark.parametrize("sent", [b"", b"\0", b"\0\0\0\0\x64" + bytes(10)], ids=["nothing", "a byte", "half"])
@pytest.mark.parametrize("method", [INFER, STREAM, READY, LIVE, WATCH])
@on_loop
async def test_a_call_that_ends_within_its_message_is_answered_and_gone(
    method: str, sent: bytes, tmp_path: Path
) -> None:
    async with serving(tmp_path) as (served, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        settings = http2._frame(http2._SETTINGS, 0, 0, b"") + http2._frame(http2._SETTINGS, http2._ACK, 0, b"")
        headers = http2._frame(http2._HEADERS, http2._END_HEADERS, 1, http2.call_headers(method))
        last = http2._frame(http2._DATA, http2._END_STREAM, 1, sent)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + headers + last)
        heard = b""
        while b"grpc-status" not in heard:
            data = await reader.read(1 << 16)
            assert data
            heard += data
        await until(lambda: not served.calls.number)
        writer.close()


@on_loop
async def test_a_message_for_an_rpc_without_fields_is_not_received(tmp_path: Path) -> None:
    async with serving(tmp_path) as (served, _):
        connection = http2.Http2Connection(("127.0.0.1", served.port), socket.AF_INET)
        headers = http2._frame(http2._HEADERS, http2._END_HEADERS, 1, http2.call_headers(LIVE))
        connection._send(headers + http2._frame(http2._DATA, 0, 1, b"\0\0\x10\0\0" + bytes(10)))
        arrived = asyncio.get_running_loop().create_future()
        server = served.parts.server
        handle, server._server._handle = server._handle, None
        server._server._handle = lambda call: (handle(call), arrived.set_result(call))
        call = await arrived
        await until(lambda: call.ended)
        assert not served.calls.receiving
        connection.close()


@pytest.mark.parametrize("method", [READY, WATCH, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"])
@on_loop
async def test_a_message_with_a_few_names_may_not_be_large(method: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as (_, channel):
        call = channel.stream_stream(method)(iter([bytes(100_000)]))
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await call.details() == f"the message has 100000 bytes; {method[1:]} takes up to 65536"


@given(st.integers(1 << 20, 1 << 44))
def test_without_a_setting_something_is_left_for_what_inferd_does_not_see(available: int) -> None:
    limit = incoming._default(available)
    assert available // 2 <= limit < available
    assert available - limit >= min(256 << 20, available // 2)
    assert available - limit <= max(256 << 20, available // 16 + 1)


def test_workers_share_the_memory() -> None:
    root = Path("models")
    assert IncomingLimits.of(
        Settings(model_repository=root, max_memory_bytes=1 << 30, workers=4, message_timeout=5.0)
    ) == IncomingLimits(1 << 28, 5.0, 64 << 20)
    assert IncomingLimits.of(Settings(model_repository=root)).memory_bytes == incoming._default(cgroup.memory())


def test_private_memory_is_what_a_process_has_written() -> None:
    before = incoming.private_memory()
    kept = np.ones(64 << 20, np.uint8)
    assert incoming.private_memory() - before > 0.9 * kept.nbytes


@pytest.mark.parametrize("text", ["", "1 2", "a b c d"])
def test_without_proc_nothing_is_known(text: str, tmp_path: Path) -> None:
    (tmp_path / "statm").write_text(text)
    assert incoming.private_memory(tmp_path / "statm") == 0
    assert incoming.private_memory(tmp_path / "absent") == 0
