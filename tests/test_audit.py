"""The audit of dependencies, against a source of advisories that the test plays."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.system


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a service with that ``handler``."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        thread.join()


@contextmanager
def advisories(vulnerable: str) -> Iterator[tuple[str, set[str]]]:
    """An OSV service that knows an advisory for one package, and which packages it was asked for."""
    asked: set[str] = set()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(405)

        def do_POST(self) -> None:
            name = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["package"]["name"]
            asked.add(name)
            known: list[dict[str, Any]] = []
            if name == vulnerable:
                package = {"ecosystem": "PyPI", "name": name}
                ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}]}]
                known = [
                    {"id": "PYSEC-2026-1", "summary": "made up", "affected": [{"package": package, "ranges": ranges}]}
                ]
            body = json.dumps({"vulns": known} if known else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with serving(Handler) as url:
        yield url, asked


@contextmanager
def proxy(status: int, body: bytes) -> Iterator[str]:
    """The address of a service behind a proxy that answers in its place."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with serving(Handler) as url:
        yield url


def audit(url: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, ROOT / ".ci" / "audit", url], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("vulnerable", ["grpcio", "pytest", ""])
def test_a_known_vulnerability_fails_and_is_named(vulnerable: str) -> None:
    with advisories(vulnerable) as (url, asked):
        ended = audit(url)
    assert {"grpcio", "openvino", "pytest"} <= asked
    if vulnerable:
        assert ended.returncode == 1, ended.stdout + ended.stderr
        assert vulnerable in ended.stdout
        assert "PYSEC-2026-1" in ended.stdout
    else:
        assert ended.returncode == 0, ended.stdout + ended.stderr


def test_where_no_source_can_be_reached_it_says_so_and_goes_on() -> None:
    # Nothing listens on that port: it belongs to a service of old times.
    ended = audit("http://127.0.0.1:1/v1/query")
    assert ended.returncode == 0
    assert "skipped" in ended.stdout
    assert "127.0.0.1:1" in ended.stdout


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (403, b"", "HTTP status 403"),
        (502, b"{}", "HTTP status 502"),
        (200, b"<html>please log in</html>", "the answer is not one of OSV's"),
        (200, b"[]", "the answer is not one of OSV's"),
    ],
)
def test_a_proxy_is_no_source(status: int, body: bytes, reason: str) -> None:
    with proxy(status, body) as url:
        ended = audit(url)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout == f"audit: skipped, {url} can't be reached: {reason}\n"
