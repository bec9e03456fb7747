"""A port that uses TLS is told from one that does not."""

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from inferd.security.tls_mismatch import tls_mismatch
from tests.certificates import CertificateAuthority


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    authority = CertificateAuthority(Path(tmp_path_factory.mktemp("tls")) / "ca")
    pair = authority.issue("server", "DNS:server.example")
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pair.certificate, pair.key)
    return made


@pytest.fixture
def serving() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """Runs a port whose connections a function handles, and returns its address."""
    ports: list[socket.socket] = []

    def serve(deal: Callable[[socket.socket], None]) -> str:
        port = socket.create_server(("127.0.0.1", 0))
        ports.append(port)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = port.accept()
                    with connection, suppress(OSError):
                        deal(connection)

        Thread(target=accept, daemon=True).start()
        return f"127.0.0.1:{port.getsockname()[1]}"

    yield serve
    for port in ports:
        port.shutdown(socket.SHUT_RDWR)
        port.close()


Serving = Callable[[Callable[[socket.socket], None]], str]


def both(address: str) -> tuple[str, str]:
    return tls_mismatch(address, tls=False), tls_mismatch(address, tls=True)


def wants_tls(address: str) -> tuple[str, str]:
    return f"{address} accepts only TLS connections; name the CA of its certificate with --ca FILE", ""


def in_the_clear(address: str) -> tuple[str, str]:
    return "", f"{address} does not use TLS; leave --ca out"


def test_a_client_without_tls_learns_that_the_port_uses_it(context: ssl.SSLContext, serving: Serving) -> None:
    address = serving(lambda connection: context.wrap_socket(connection, server_side=True).close())
    assert both(address) == wants_tls(address)


def test_a_port_that_refuses_the_greeting_with_an_alert_uses_tls(serving: Serving) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"\x15\x03\x03\x00\x02\x02\x28")  # fatal: handshake_failure

    address = serving(refuse)
    assert both(address) == wants_tls(address)


def test_a_port_that_speaks_http2_at_once_uses_no_tls(serving: Serving) -> None:
    address = serving(lambda connection: connection.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\x00" * 64))
    assert both(address) == in_the_clear(address)


def test_a_web_server_uses_no_tls() -> None:
    class Quiet(BaseHTTPRequestHandler):
        timeout = 1

        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Quiet) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        assert both(address) == in_the_clear(address)
        server.shutdown()


def test_a_silent_port_gives_no_verdict(serving: Serving) -> None:
    assert both(serving(lambda _: None)) == ("", "")


def test_a_closed_port_gives_no_verdict() -> None:
    with socket.create_server(("127.0.0.1", 0)) as port:
        address = f"127.0.0.1:{port.getsockname()[1]}"
    assert both(address) == ("", "")
    assert both("unix:/run/inferd") == ("", "")
    assert both("no.such.host.invalid:1") == ("", "")
