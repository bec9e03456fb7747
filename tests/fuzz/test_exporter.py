"""The metrics port on requests that no client would send: a response or a closed connection, and the next is served."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inferd.exposition.exporter import Exporter, Pages, registry_of
from inferd.exposition.status import Status
from inferd.metrics.snapshot import ServerSnapshot
from tests.effort import examples
from tests.fuzz.mutation import mutated

SOME = settings(max_examples=examples(200), suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    status = Status(_nothing)
    status.start()
    exporter = Exporter("127.0.0.1", 0, Pages(registry_of([]), lambda: (True, "ready"), status))
    exporter.start()
    yield exporter.port
    assert _ask(exporter.port, b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200 ")
    exporter.close()
    status.stop()


def _nothing() -> ServerSnapshot:
    raise RuntimeError("nothing to show")


def _ask(port: int, data: bytes) -> bytes:
    heard = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection, suppress(ConnectionError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while chunk := connection.recv(1 << 16):
            heard += chunk
    return heard


@given(query=st.text(max_size=60))
@SOME
def test_any_query_of_the_status_page_is_answered(query: str, port: int) -> None:
    answer = _ask(port, f"GET /status.json?since={quote(query)} HTTP/1.0\r\n\r\n".encode())
    assert answer.split(b" ")[1] in (b"200", b"400", b"503")


@given(query=st.binary(max_size=60).filter(lambda b: not set(b) & set(b" \r\n#")))
@SOME
def test_any_bytes_as_a_query_are_answered(query: bytes, port: int) -> None:
    answer = _ask(port, b"GET /status.json?" + query + b" HTTP/1.0\r\n\r\n")
    assert answer.split(b" ")[1] in (b"200", b"400", b"503")


ACCEPTED = (
    "application/openmetrics-text",
    "text/plain",
    "*/*",
    "version",
    "escaping",
    "allow-utf-8",
    "q",
    "1.0.0",
    "x",
)


@given(parts=st.lists(st.sampled_from((*ACCEPTED, ";", ",", "=", " ", ".", "9")) | st.text(max_size=5), max_size=12))
@SOME
def test_whatever_a_scraper_accepts_it_gets_text(parts: list[str], port: int) -> None:
    accept = "".join(parts).replace("\r", "").replace("\n", "").encode(errors="replace")
    answer = _ask(port, b"GET /metrics HTTP/1.0\r\nAccept: %b\r\nAccept-Encoding: %b\r\n\r\n" % (accept, accept))
    assert answer.split(b" ")[1] == b"200"


def test_mutated_requests_are_answered_or_hung_up_on(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    chance = Random(3)
    corpus = [
        b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text\r\nAccept-Encoding: gzip\r\n\r\n",
        b"GET /status.json?since=12 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer abc\r\nContent-Length: 5\r\n\r\n",
        b"HEAD / HTTP/1.0\r\n\r\n",
    ]
    for _ in range(400):
        answer = _ask(port, mutated(chance, corpus))
        assert not answer.startswith(b"HTTP/1.0 500"), answer
    assert "Traceback" not in capfd.readouterr().err
