"""Long-lived connections make room for new ones."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from prometheus_client import CollectorRegistry

from inferd.exposition.connections import Connections
from inferd.exposition.exporter import Exporter, Pages
from inferd.exposition.status import Status
from inferd.metrics.snapshot import ServerSnapshot

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    with ExitStack() as ends:
        made = [socket.socketpair() for _ in range(4)]
        for pair in made:
            for end in pair:
                ends.enter_context(end)
                end.settimeout(10)
        yield made


def test_one_too_many_closes_the_one_that_was_open_longest(pairs: list[Pair]) -> None:
    connections = Connections(2)
    for ours, _ in pairs[:3]:
        connections.admit(ours)
    assert pairs[0][1].recv(1) == b""
    assert len(connections) == 2
    for ours, theirs in pairs[1:3]:
        ours.send(b"x")
        assert theirs.recv(1) == b"x"
        connections.forget(ours)


def test_one_that_has_ended_makes_room(pairs: list[Pair]) -> None:
    connections = Connections(2)
    for ours, _ in pairs:
        connections.admit(ours)
        connections.forget(ours)
        connections.forget(ours)
    assert len(connections) == 0
    for ours, theirs in pairs:
        ours.send(b"x")
        assert theirs.recv(1) == b"x"


def test_one_that_the_client_closed_meanwhile_is_let_go_of(pairs: list[Pair]) -> None:
    connections = Connections(1)
    connections.admit(pairs[0][0])
    pairs[0][1].close()
    connections.admit(pairs[1][0])
    assert len(connections) == 1
    connections.forget(pairs[1][0])


def _nothing() -> ServerSnapshot:
    raise AssertionError("no test here asks for figures")


def test_a_scrape_is_answered_however_many_connections_say_nothing() -> None:
    exporter = Exporter("127.0.0.1", 0, Pages(CollectorRegistry(), lambda: (True, "ready"), Status(_nothing)))
    exporter.start()
    with ExitStack() as ends:
        ends.callback(exporter.close)
        silent = [
            ends.enter_context(socket.create_connection(("127.0.0.1", exporter.port), timeout=10)) for _ in range(150)
        ]
        for connection in silent[:80]:
            assert connection.recv(1) == b"", "there is room for 64"
        asking = ends.enter_context(socket.create_connection(("127.0.0.1", exporter.port), timeout=10))
        asking.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert asking.recv(100).startswith(b"HTTP/1.0 200 ")
