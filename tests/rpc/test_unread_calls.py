"""A call whose request never arrived whole is counted once, and no other call is counted with it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from inferd.errors import NotReceived
from inferd.requests import Observation
from inferd.rpc.unread_calls import UnreadCalls
from tests.event_loop import on_loop, until

METHOD = "/service/Infer"
LIMIT = 1000


class Echo(grpc.GenericRpcHandler):
    """Answers every method with the message it received."""

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(self.echo)

    async def echo(self, raw: bytes, _: grpc.aio.ServicerContext) -> bytes:
        return raw


@asynccontextmanager
async def serving(seen: list[Observation]) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", LIMIT)])
    server.add_generic_rpc_handlers((UnreadCalls(Echo(), METHOD, seen.append),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)


async def code(channel: grpc.aio.Channel, size: int, method: str = METHOD) -> grpc.StatusCode:
    return await channel.unary_unary(method)(bytes(size)).code()


@on_loop
async def test_a_message_over_the_limit_is_observed_though_no_handler_sees_it() -> None:
    seen: list[Observation] = []
    async with serving(seen) as channel:
        codes = await asyncio.gather(*(code(channel, size) for size in (10, 2 * LIMIT, 20, 3 * LIMIT)))
        assert codes == [
            grpc.StatusCode.OK,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            grpc.StatusCode.OK,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ]
        await until(lambda: len(seen) >= 2)
    assert [(one.model, one.version, one.outcome, type(one.error)) for one in seen] == [
        ("_OTHER", "", "aborted_receive", NotReceived)
    ] * 2
    assert all(one.stages.total() >= 0 for one in seen)


@on_loop
async def test_a_call_that_ends_before_its_message_arrives_is_observed() -> None:
    seen: list[Observation] = []
    async with serving(seen) as channel:
        # The client announces a message, and closes the connection instead.
        call = channel.stream_unary(METHOD)()
        await call.wait_for_connection()
        call.cancel()
        await until(lambda: len(seen) == 1)
    assert seen[0].outcome == "aborted_receive"


@on_loop
async def test_read_calls_and_other_methods_are_left_to_their_handlers() -> None:
    seen: list[Observation] = []
    async with serving(seen) as channel:
        assert await code(channel, 5) is grpc.StatusCode.OK
        assert await code(channel, 2 * LIMIT, "/service/Other") is grpc.StatusCode.RESOURCE_EXHAUSTED
        # A later one has been counted, so the earlier ones would have been counted too.
        assert await code(channel, 2 * LIMIT) is grpc.StatusCode.RESOURCE_EXHAUSTED
        await until(lambda: len(seen) == 1)
    assert len(seen) == 1
