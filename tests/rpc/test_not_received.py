"""A call whose request never arrived whole is counted once, and no other call is counted with it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from inferd.errors import NotReceived
from inferd.lifecycle import Phase
from inferd.requests import Observation
from inferd.rpc.gate import SERVICE
from inferd.tensors import DType
from inferd.transport import http2
from tests import models
from tests.event_loop import on_loop, until
from tests.rpc.parts import Parts
from tests.system.wire import request

INFER, STREAM, LIVE = (f"/{SERVICE}/{name}" for name in ("ModelInfer", "ModelStreamInfer", "ServerLive"))
GOOD = request("m", {"x": np.zeros(4, np.float32)}).SerializeToString()
TOO_LARGE = bytes(2 << 20)
OK, EXHAUSTED = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED
NOT_RECEIVED = ("_OTHER", "", "aborted_receive", NotReceived)


class Serving:
    """A server with a model ``m``; ``seen`` is what it observed."""

    def __init__(self, root: Path) -> None:
        models.save(models.identity(DType.FP32, [4]), root, "m")
        self.parts = Parts(root, {})
        self.seen: list[Observation] = []
        self.parts.inference._observe = self.seen.append
        self.port = self.parts.server.bind("127.0.0.1:0")

    def counted(self) -> list[tuple[str, str, str, type]]:
        return [(one.model, one.version, one.outcome, type(one.error)) for one in self.seen]

    @property
    def open(self) -> int:
        return self.parts.inference.open_calls


@asynccontextmanager
async def serving(root: Path) -> AsyncIterator[tuple[Serving, grpc.aio.Channel]]:
    served = Serving(root)
    await served.parts.catalog.load_all()
    await served.parts.server.start()
    served.parts.lifecycle.move(Phase.READY)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            yield served, channel
    finally:
        await served.parts.server.stop(0)
        await served.parts.catalog.close()


async def code(channel: grpc.aio.Channel, message: bytes, method: str = INFER) -> grpc.StatusCode:
    return await channel.unary_unary(method)(message).code()


@on_loop
async def test_a_message_over_the_limit_is_observed_though_none_is_received(tmp_path: Path) -> None:
    async with serving(tmp_path) as (served, channel):
        messages = (GOOD, TOO_LARGE, GOOD, TOO_LARGE + TOO_LARGE)
        codes = await asyncio.gather(*(code(channel, message) for message in messages))
        assert codes == [OK, EXHAUSTED, OK, EXHAUSTED]
        await until(lambda: len(served.seen) >= 2)
        # The other two are observed where their model is.
        assert served.counted() == [NOT_RECEIVED] * 2
        assert [one[:3] for one in served.parts.seen] == [("m", "1", "ok")] * 2
        assert all(one.stages.total() >= 0 for one in served.seen)
        await until(lambda: not served.open)


async def cancelled(served: Serving, channel: grpc.aio.Channel) -> None:
    call = channel.stream_unary(INFER)()
    await until(lambda: served.open == 1)
    call.cancel()


async def past_its_deadline(_: Serving, channel: grpc.aio.Channel) -> None:
    assert await channel.stream_unary(INFER)(timeout=0.1).code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def without_a_message(_: Serving, channel: grpc.aio.Channel) -> None:
    call = channel.stream_unary(INFER)()
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.CANCELLED


async def cut_off(served: Serving, _: grpc.aio.Channel) -> None:
    connection = http2.Http2Connection(("127.0.0.1", served.port), socket.AF_INET)
    connection._send(http2._frame(http2._HEADERS, http2._END_HEADERS, 1, http2.call_headers(INFER)))
    # Of a hundred bytes that are announced, the first ten.
    connection._send(http2._frame(http2._DATA, 0, 1, b"\0\0\0\0\x64" + bytes(10)))
    await until(lambda: served.open == 1)
    connection.close()


async def when_the_server_stops(served: Serving, channel: grpc.aio.Channel) -> None:
    call = channel.stream_unary(INFER)()
    await until(lambda: served.open == 1)
    await served.parts.server.stop(0)
    assert await call.code() is not OK


ENDS = (cancelled, past_its_deadline, without_a_message, cut_off, when_the_server_stops)


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
@on_loop
async def test_a_call_that_ends_before_its_message_arrives_is_observed(
    end: Callable[[Serving, grpc.aio.Channel], Awaitable[None]], tmp_path: Path
) -> None:
    async with serving(tmp_path) as (served, channel):
        await end(served, channel)
        await until(lambda: len(served.seen) == 1)
        await until(lambda: not served.open)
    assert served.counted() == [NOT_RECEIVED]


@on_loop
async def test_read_calls_and_other_methods_are_observed_elsewhere_or_not_at_all(tmp_path: Path) -> None:
    async with serving(tmp_path) as (served, channel):
        assert await code(channel, GOOD) is OK
        # Its message has no fields, and is not received.
        assert await code(channel, TOO_LARGE, LIVE) is OK
        assert await code(channel, TOO_LARGE, STREAM) is EXHAUSTED
        # A later one has been counted, so the earlier ones would have been counted too.
        assert await code(channel, TOO_LARGE) is EXHAUSTED
        await until(lambda: len(served.seen) >= 1)
        await until(lambda: not served.open)
    assert served.counted() == [NOT_RECEIVED]
