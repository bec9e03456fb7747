"""What inferd asks of a transport: calls with all that comes with them, each ended once, and a clean stop."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from inferd.transport.call import ServerCall
from inferd.transport.server import GrpcServer
from tests.event_loop import on_loop, until

Handle = Callable[[ServerCall], None]
LIMIT = 100_000


@asynccontextmanager
async def serving(handle: Handle, grace: float = 0) -> AsyncIterator[tuple[GrpcServer, grpc.aio.Channel]]:
    server = GrpcServer(handle, [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", LIMIT)])
    port = server.listen("127.0.0.1:0")
    server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield server, channel
    finally:
        await server.stop(grace)
        assert server.calls.number == 0


def echo(call: ServerCall) -> None:
    call.receive(lambda call, raw: call.respond(raw) if raw is not None else call.fail(3, "no message"))


def test_it_needs_its_own_loop() -> None:
    async def make() -> None:
        GrpcServer(echo, [])

    with pytest.raises(TypeError, match="QueueEventLoop"):
        asyncio.run(make())


async def reads_and_writes_the_sockets() -> None:
    """Raises AssertionError unless the thread that polls gRPC's queue does that."""
    server = GrpcServer(echo, [("grpc.so_reuseport", 0)])
    port = server.listen("127.0.0.1:0")
    server.start()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)  # this function holds that thread
        connection.settimeout(10)
        settings = await asyncio.to_thread(connection.recv, 9)
        assert settings[3] == 4
    await server.stop(0)


def test_the_thread_that_polls_reads_and_writes_the_sockets() -> None:
    """grpcio no longer leaves that choice if this fails: calls then cost twice as much (docs/decisions/0024).

    In a process of its own, because gRPC decides it when it is first used."""
    code = f"from {__name__} import *; from tests.event_loop import run; run(reads_and_writes_the_sockets())"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60)


@on_loop
async def test_a_call_brings_its_method_metadata_peer_deadline_and_message() -> None:
    seen: list[ServerCall] = []

    def note(call: ServerCall) -> None:
        seen.append(call)
        echo(call)

    async with serving(note) as (_, channel):
        metadata = (("key", "one"), ("key", "two"), ("bytes-bin", b"\0\xff"))
        assert await channel.unary_unary("/a.B/C")(b"hello", metadata=metadata, timeout=20) == b"hello"
        assert await channel.unary_unary("/a.B/D")(b"") == b""
    first, second = seen
    assert (first.method, second.method) == ("/a.B/C", "/a.B/D")
    assert [(k, v) for k, v in first.metadata if not k.startswith("user-agent")] == list(metadata)
    assert first.peer().startswith("ipv4:127.0.0.1:")
    assert first.peer_identities() == []
    left = first.time_remaining()
    assert left is not None
    assert 0 < left <= 20
    deadline = first.deadline()
    assert deadline is not None
    assert deadline - first.arrived <= 20.1e9
    assert (second.time_remaining(), second.deadline()) == (None, None)
    assert second.arrived >= first.arrived


@on_loop
async def test_an_error_has_its_code_words_and_trailers_and_the_message_is_not_read() -> None:
    trailers = (("why", "because"), ("rich-bin", b"\1\2"))
    async with serving(lambda call: call.fail(8, "no röom", trailers)) as (_, channel):
        call = channel.unary_unary("/a/b")(bytes(LIMIT))
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await call.details() == "no röom"
        assert [(k, v) for k, v in await call.trailing_metadata()] == list(trailers)


@on_loop
async def test_only_the_first_end_counts() -> None:
    def both(call: ServerCall) -> None:
        call.fail(5, "first")
        call.respond(b"second")
        call.fail(8, "third")
        call.finish()

    async with serving(both) as (server, channel):
        assert await channel.unary_unary("/a/b")(b"").code() is grpc.StatusCode.NOT_FOUND
        await until(lambda: server.calls.number == 0)


@on_loop
async def test_a_message_that_never_comes_whole_is_none() -> None:
    seen: list[bytes | None] = []

    def received(call: ServerCall, raw: bytes | None) -> None:
        seen.append(raw)
        call.fail(3, "no message")

    async with serving(lambda call: call.receive(received)) as (server, channel):
        too_large = channel.unary_unary("/a/b")(bytes(LIMIT + 1))
        assert await too_large.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        empty = channel.stream_unary("/a/b")()
        await empty.done_writing()
        assert await empty.code() is grpc.StatusCode.INVALID_ARGUMENT
        gone = channel.stream_unary("/a/b")()
        await gone.wait_for_connection()
        await until(lambda: server.calls.number == 1)
        gone.cancel()
        await until(lambda: len(seen) == 3)
    assert seen == [None] * 3


@pytest.mark.parametrize("how", ["cancelled", "deadline", "connection lost"])
@on_loop
async def test_a_client_that_leaves_is_noticed_once(how: str) -> None:
    held: list[ServerCall] = []
    left: list[ServerCall] = []

    def hold(call: ServerCall) -> None:
        call.receive(lambda call, _: (held.append(call), call.watch(lambda: left.append(call))))

    async with serving(hold) as (server, channel):
        call = channel.unary_unary("/a/b")(b"x", timeout=0.2 if how == "deadline" else None)
        await until(lambda: bool(held))
        if how == "cancelled":
            call.cancel()
        elif how == "connection lost":
            await channel.close()
        await until(lambda: left == held)
        assert held[0].ended
        held[0].respond(b"too late")
        assert server.calls.number == 0


@on_loop
async def test_an_answered_call_is_never_reported_as_left() -> None:
    left = []

    def watched(call: ServerCall) -> None:
        call.watch(lambda: left.append(call))
        echo(call)

    async with serving(watched) as (server, channel):
        answers = await asyncio.gather(*(channel.unary_unary("/a/b")(b"%d" % n) for n in range(200)))
        assert answers == [b"%d" % n for n in range(200)]
        await until(lambda: server.calls.number == 0)
    assert left == []


@on_loop
async def test_a_stream_is_read_when_asked_and_sent_in_order() -> None:
    async def double(call: ServerCall) -> None:
        while (raw := await call.read()) is not None:
            await call.write(raw)
            await call.write(raw + raw)
        call.finish()

    tasks = []
    async with serving(lambda call: tasks.append(asyncio.ensure_future(double(call)))) as (_, channel):
        stream = channel.stream_stream("/a/b")(iter([b"1", b"2", b"3"]))
        assert [answer async for answer in stream] == [b"1", b"11", b"2", b"22", b"3", b"33"]
        assert await stream.code() is grpc.StatusCode.OK


@on_loop
async def test_a_message_to_a_client_that_has_left_is_reported_as_not_sent() -> None:
    held: list[ServerCall] = []

    def hold(call: ServerCall) -> None:
        held.append(call)
        call.watch(lambda: None)

    async with serving(hold) as (_, channel):
        stream = channel.stream_stream("/a/b")()
        await stream.wait_for_connection()
        await until(lambda: bool(held))
        stream.cancel()
        await until(lambda: held[0].ended)
        sent = asyncio.get_running_loop().create_future()
        held[0].send(b"x", sent.set_result)
        assert await sent is False


@on_loop
async def test_compressed_messages_are_understood() -> None:
    async with serving(echo) as (_, channel):
        call = channel.unary_unary("/a/b")(b"z" * 10_000, compression=grpc.Compression.Gzip)
        assert await call == b"z" * 10_000


@on_loop
async def test_a_handler_that_fails_ends_its_call_and_no_other() -> None:
    def fail_on_request(call: ServerCall) -> None:
        if call.method == "/a/fails":
            raise ZeroDivisionError
        echo(call)

    async with serving(fail_on_request) as (_, channel):
        assert await channel.unary_unary("/a/fails")(b"").code() is grpc.StatusCode.INTERNAL
        assert await channel.unary_unary("/a/works")(b"1") == b"1"


@on_loop
async def test_a_burst_beyond_all_that_is_asked_for_loses_nothing() -> None:
    held: list[ServerCall] = []

    def hold(call: ServerCall) -> None:
        call.receive(lambda call, _: held.append(call))

    async with serving(hold) as (_, channel):
        calls = [channel.unary_unary("/a/b")(b"") for _ in range(1000)]
        await until(lambda: len(held) == 1000)
        for call in held:
            call.respond(b"")
        assert {await call.code() for call in calls} == {grpc.StatusCode.OK}


@on_loop
async def test_stopping_lets_calls_end_and_ends_those_that_do_not() -> None:
    held: dict[str, ServerCall] = {}
    left = []

    def hold(call: ServerCall) -> None:
        held[call.method] = call
        call.receive(lambda call, _: call.watch(lambda: left.append(call.method)))

    async with serving(hold) as (server, channel):
        ends, stays = (channel.unary_unary(f"/a/{name}")(b"") for name in ("ends", "stays"))
        await until(lambda: len(held) == 2)
        stopping = asyncio.ensure_future(server.stop(0.3))
        await asyncio.sleep(0)
        held["/a/ends"].respond(b"1")
        assert await ends == b"1"
        # A new call is not accepted any more, and not lost either: the client is told.
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary("/a/late")(b"", timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        await stopping
        assert await stays.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert left == ["/a/stays"]


@on_loop
async def test_a_port_is_free_after_the_stop_even_without_a_start() -> None:
    server = GrpcServer(echo, [("grpc.so_reuseport", 0)])
    port = server.listen("127.0.0.1:0")
    other = GrpcServer(echo, [("grpc.so_reuseport", 0)])
    assert other.listen(f"127.0.0.1:{port}") == 0
    await other.stop(0)
    await server.stop(0)
    await server.stop(0)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
