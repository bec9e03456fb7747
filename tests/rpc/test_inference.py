"""How requests are accepted: templated ones are refused, counted and logged like any other, the first request of a call
has waited as long as calls wait, and what a busy model would refuse is not received first."""

import asyncio
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from inferd.errors import ModelUnavailable
from inferd.lifecycle import Phase
from inferd.rpc import wire
from inferd.rpc.call import CallContext, InferCall, Recipient, Wrap
from inferd.rpc.gate import SERVICE
from inferd.scheduling.accept_wait import AcceptWait
from inferd.tensors import DType
from tests import models
from tests.event_loop import on_loop, until
from tests.rpc.parts import FutureRecipient, Parts
from tests.system.wire import connect, method, request

MS = 1_000_000
WAITED = 70 * MS


class Standing(AcceptWait):
    """A fixed number of nanoseconds, whatever probes report."""

    def __init__(self, current: int) -> None:
        super().__init__()
        self.current = current


@on_loop
async def test_a_templated_request_counts_for_its_model_after_that_is_unloaded(tmp_path: Path) -> None:
    models.save(models.identity(DType.FP32, [4]), tmp_path, "m")
    parts = Parts(tmp_path, {})
    await parts.catalog.load_all()
    parts.lifecycle.move(Phase.READY)
    message = request("m", {"x": np.zeros(4, np.float32)}, parameters={"triton_enable_empty_final_response": True})

    def ask(request_id: str) -> tuple[str, bool]:
        message.id = request_id
        asked.append(recipient := FutureRecipient())
        call = parts.inference.begin(message.SerializeToString(), wire.as_unary, CallContext(None), recipient)
        return call.id, call.final_response

    asked: list[FutureRecipient] = []
    assert [ask("1"), ask("2")] == [("1", True), ("2", True)]
    first, second = [await recipient.future for recipient in asked]
    assert first != second
    await parts.catalog.unload("m")
    assert ask("3") == ("3", True)
    with pytest.raises(ModelUnavailable):
        await asked[-1].future
    assert parts.seen[-1][:3] == ("m", "", "unavailable")
    await parts.catalog.close()


async def serving(tmp_path: Path) -> tuple[Parts, list[InferCall], str]:
    """A server with a model ``m``, the inferences that it begins, and where it listens."""
    models.save(models.identity(DType.FP32, [4]), tmp_path, "m")
    parts, begun = Parts(tmp_path, {}), []
    begin = parts.inference.begin

    def noted(raw: bytes, wrap: Wrap, call_context: CallContext, recipient: Recipient) -> InferCall:
        begun.append(begin(raw, wrap, call_context, recipient))
        return begun[-1]

    parts.inference.begin = noted
    await parts.catalog.load_all()
    port = parts.server.bind("127.0.0.1:0")
    await parts.server.start()
    parts.lifecycle.move(Phase.READY)
    return parts, begun, f"127.0.0.1:{port}"


async def stop(parts: Parts) -> None:
    await parts.server.stop(0)
    await parts.catalog.close()


ZEROS = request("m", {"x": np.zeros(4, np.float32)})


@on_loop
async def test_a_call_has_waited_before_it_was_seen(tmp_path: Path) -> None:
    parts, begun, address = await serving(tmp_path)
    parts.inference._accept_wait = Standing(WAITED)
    async with connect(address) as channel:
        infer, before = method(channel, "ModelInfer"), time.monotonic_ns()
        await infer(ZEROS)
        with pytest.raises(grpc.aio.AioRpcError):
            await infer(request("none", {}))
        for call in begun:
            assert before - WAITED <= call.stages.received <= time.monotonic_ns() - WAITED
            assert call.stages.waited == WAITED
            assert call.stages.queue() >= WAITED
            assert call.stages.total() >= WAITED
        assert begun[0].stages.queued - begun[0].stages.received >= WAITED
        assert begun[0].stages.decode() == begun[0].stages.queued - begun[0].stages.received - WAITED
        assert sum(begun[0].stages.durations()) == begun[0].stages.total()
        parts.inference._accept_wait = Standing(0)
        before = time.monotonic_ns()
        await infer(ZEROS)
        assert begun[-1].stages.waited == 0
        assert begun[-1].stages.received >= before
    await stop(parts)


@on_loop
async def test_a_requests_own_timeout_has_run_while_its_call_waited(tmp_path: Path) -> None:
    parts, _, address = await serving(tmp_path)
    parts.inference._accept_wait = Standing(WAITED)
    message = request("m", {"x": np.zeros(4, np.float32)}, parameters={"timeout": WAITED // 1000 - 1})
    async with connect(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await method(channel, "ModelInfer")(message)
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert parts.seen == [("m", "1", "deadline", "arrival")]
    await stop(parts)


@on_loop
async def test_only_the_first_request_of_a_stream_has_waited_with_the_call(tmp_path: Path) -> None:
    parts, begun, address = await serving(tmp_path)
    # Long enough that the first has certainly arrived before.
    parts.inference._accept_wait = Standing(3600 * 1000 * MS)
    async with connect(address) as channel:
        stream = method(channel, "ModelStreamInfer")()
        for _ in range(3):
            await stream.write(ZEROS)
            await stream.read()
        await stream.done_writing()
        await stream.code()
    assert [call.stages.waited for call in begun] == [3600 * 1000 * MS, 0, 0]
    await stop(parts)


@on_loop
async def test_a_request_that_comes_later_than_its_stream_has_not_waited(tmp_path: Path) -> None:
    parts, begun, address = await serving(tmp_path)
    parts.inference._accept_wait = Standing(1)
    async with connect(address) as channel:
        stream = method(channel, "ModelStreamInfer")()
        await until(lambda: len(parts.inference._streams) == 1)
        (opened,) = parts.inference._streams
        await until(lambda: opened._begin.keywords["call_context"].waited == 0)
        await stream.write(ZEROS)
        await stream.read()
        await stream.done_writing()
        await stream.code()
    assert [call.stages.waited for call in begun] == [0]
    await stop(parts)


async def unwritten(channel: grpc.aio.Channel) -> grpc.StatusCode:
    """How a call ends of which the server gets no message."""
    call = channel.stream_unary(f"/{SERVICE}/ModelInfer")()
    return await call.code()


@on_loop
async def test_what_a_full_queue_would_refuse_is_refused_without_its_message(tmp_path: Path) -> None:
    parts, begun, address = await serving(tmp_path)
    scheduler = parts.catalog.sole[1].dispatcher.scheduler
    scheduler.pause(0, time.monotonic_ns())
    async with connect(address) as channel:
        infer = method(channel, "ModelInfer")
        accepted = [asyncio.ensure_future(infer(ZEROS)) for _ in range(8)]
        await until(lambda: scheduler.waiting == 8)
        with pytest.raises(grpc.aio.AioRpcError, match="queue is full"):
            await infer(ZEROS)
        assert await unwritten(channel) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert parts.seen == [("m", "1", "overloaded", "queue_full")] * 2
        scheduler.resume(0)
        # One more, so that the dispatcher looks.
        parts.catalog.sole[1].dispatcher.disconnected(None)
        await asyncio.gather(*accepted)
        assert len(begun) == 9
        assert parts.inference.open_calls == 0
    await stop(parts)


@on_loop
async def test_while_another_model_might_be_meant_the_message_is_received(tmp_path: Path) -> None:
    models.save(models.identity(DType.FP32, [4]), tmp_path, "other")
    parts, begun, address = await serving(tmp_path)
    assert parts.catalog.sole is None
    dispatcher = parts.catalog.resolve("m", "")[1].dispatcher
    dispatcher.scheduler.pause(0, time.monotonic_ns())
    async with connect(address) as channel:
        infer = method(channel, "ModelInfer")
        accepted = [asyncio.ensure_future(infer(ZEROS)) for _ in range(8)]
        await until(lambda: dispatcher.scheduler.waiting == 8)
        assert (await infer(request("other", {"x": np.zeros(4, np.float32)}))).model_name == "other"
        with pytest.raises(grpc.aio.AioRpcError):
            await infer(ZEROS)
        dispatcher.scheduler.resume(0)
        dispatcher.disconnected(None)
        await asyncio.gather(*accepted)
    assert len(begun) == 10
    await stop(parts)
