"""Connections whose clients end thousands of calls a second are closed, and no others."""

import asyncio
import socket
from collections import Counter
from collections.abc import Sequence

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from inferd.transport import connection, floods, http2
from inferd.transport.floods import EndedCalls
from inferd.transport.server import GrpcServer
from tests.event_loop import on_loop, until
from tests.transport.test_server import echo, serving

PEERS = ("ipv4:127.0.0.1:1", "ipv6:[::1]:2", "unix:")
SECOND = 10**9


@given(st.lists(st.tuples(st.sampled_from(PEERS), st.integers(0, 3 * SECOND)), max_size=80), st.integers(1, 5))
def test_a_connection_is_cut_off_once_in_a_second_that_has_too_many(ends: Sequence[tuple[str, int]], most: int) -> None:
    counted, now = EndedCalls(most), SECOND
    begun, seen = 0, Counter[str]()
    for peer, later in ends:
        now += later
        if now - begun >= SECOND:
            begun = now
            seen.clear()
        seen[peer] += 1
        assert counted.count(peer, now) is (seen[peer] == most + 1)
        assert len(counted) == len(seen)
        assert counted.over == {one for one, number in seen.items() if number > most}


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:5000", ("127.0.0.1", 5000)),
        ("ipv6:[::1]:5000", ("::1", 5000)),
        ("ipv6:%5B::1%5D:5000", ("::1", 5000)),
        ("unix:", None),
        ("unix:/a/b", None),
        ("", None),
    ],
)
def test_grpcs_names_of_peers(peer: str, address: tuple[str, int] | None) -> None:
    assert connection._address(peer) == address


def test_the_connection_with_the_peer_is_closed_and_what_it_had_sent_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ends = [socket.create_connection(listening.getsockname()) for _ in range(2)]
        kept, cut = (listening.accept()[0] for _ in ends)
        with ends[0], ends[1], kept, cut:
            ends[1].sendall(b"too much")
            host, port = ends[1].getsockname()
            assert connection.close(f"ipv4:{host}:{port}", b"goodbye")
            assert cut.recv(100) == b""
            assert ends[1].recv(100) == b"goodbye"
            assert ends[1].recv(100) == b""
            ends[0].sendall(b"still here")
            assert kept.recv(100) == b"still here"
    assert not connection.close(f"ipv4:{host}:{port}")


def flood(calls: int) -> bytes:
    """A client's side of a connection on which it begins so many calls and resets each (RFC 9113: type 3, error 8)."""
    headers, cancelled = http2.call_headers("/any/Method"), (8).to_bytes(4, "big")
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(
        (
            http2._frame(http2._SETTINGS, 0, 0, b""),
            *(
                http2._frame(http2._HEADERS, http2._END_HEADERS, stream, headers)
                + http2._frame(3, 0, stream, cancelled)
                for stream in range(1, 2 * calls, 2)
            ),
        )
    )


async def heard_until_closed(address: str, data: bytes) -> bytes:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    heard = await reader.read()
    writer.close()
    return heard


@on_loop
async def test_a_flood_of_ended_calls_is_answered_by_goaway_and_others_go_on() -> None:
    server = GrpcServer(echo, [("grpc.so_reuseport", 0)])
    server._ended_by_clients = EndedCalls(20)
    address = f"127.0.0.1:{server.listen('127.0.0.1:0')}"
    server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            assert await channel.unary_unary("/any/Method")(b"served") == b"served"
            with capture_logs() as logs:
                assert floods._GOAWAY in await heard_until_closed(address, flood(60))
            assert [entry["event"] for entry in logs] == ["connection closed: its client ends too many calls"]
            assert await channel.unary_unary("/any/Method")(b"still served") == b"still served"
            await until(lambda: server.calls.number == 0)
    finally:
        await server.stop(0)


@on_loop
async def test_calls_that_end_as_they_should_are_no_flood() -> None:
    async with serving(echo) as (server, channel):
        server._ended_by_clients = EndedCalls(0)
        call = channel.unary_unary("/any/Method")
        assert [await call(b"x") for _ in range(20)] == [b"x"] * 20
        assert len(server._ended_by_clients) == 0
        cancelled = channel.stream_unary("/any/Method")()
        await until(lambda: server.calls.number == 1)
        cancelled.cancel()
        # Its connection is closed, and the client opens another.
        await until(lambda: server.calls.number == 0)
        await until(lambda: len(server._ended_by_clients) == 1)
        assert await call(b"x", wait_for_ready=True) == b"x"


def test_what_has_arrived_is_counted_by_connection_whoever_reads_it() -> None:
    counts = connection.ReceivedBytes()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname()) as sender, listening.accept()[0] as receiver:
            host, port = sender.getsockname()
            peer, other = f"ipv4:{host}:{port}", f"ipv4:{host}:1"
            assert counts.of([peer, other, "unix:"]) == {peer: 0}
            for total in (1000, 3000):
                sender.sendall(bytes(1000 if total == 1000 else 2000))
                assert len(receiver.recv(1000, socket.MSG_WAITALL)) == 1000
                assert counts.of([peer])[peer] >= 1000
            assert len(receiver.recv(1000, socket.MSG_WAITALL)) == 1000
            assert counts.of([peer]) == {peer: 3000}
        # Its descriptors are closed, and may be another's by now.
        with socket.create_connection(listening.getsockname()), listening.accept()[0]:
            assert counts.of([peer]) == {}
    assert receiver.fileno() == -1
