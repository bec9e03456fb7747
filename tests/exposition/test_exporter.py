"""The metrics endpoint by itself, on a real socket."""

import http.client
import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from inferd.errors import ConfigurationError
from inferd.exposition.exporter import Exporter, Pages, registry_of
from inferd.exposition.status import Status
from tests.metrics.made_up import model, server

Ready = Callable[[], tuple[bool, str]]


class Requests(Collector):
    """One counter, as the recorder gives them."""

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily("inferd_requests", "Requests.", labels=("model",))
        requests.add_metric(('a"b\nc',), 3)
        yield requests


def ready() -> tuple[bool, str]:
    return True, "ready"


@contextmanager
def exporting(
    registry: CollectorRegistry | None = None,
    readiness: Ready = ready,
    host: str = "127.0.0.1",
    status: Status | None = None,
    stalled: float = 0.0,
) -> Iterator[Exporter]:
    pages = Pages(registry or CollectorRegistry(), readiness, status or Status(server), lambda: stalled)
    exporter = Exporter(host, 0, pages)
    exporter.start()
    try:
        yield exporter
    finally:
        exporter.close()


def ask(
    exporter: Exporter, method: str, path: str, host: str = "127.0.0.1", **headers: str
) -> tuple[int, dict[str, str], str]:
    """Status, headers and body."""
    connection = http.client.HTTPConnection(host, exporter.port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read().decode()
    finally:
        connection.close()


def get(exporter: Exporter, path: str, accept: str = "*/*", host: str = "127.0.0.1") -> tuple[int, str, str]:
    """Status, content type and body."""
    status, headers, body = ask(exporter, "GET", path, host, Accept=accept)
    return status, headers["Content-Type"], body


PATHS = "/, /status.json, /metrics, /healthz, /readyz"


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=0.0.4", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        # What Prometheus 2 sends.
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ],
)
def test_metrics_come_in_the_format_that_is_asked_for(accept: str, content_type: str) -> None:
    with exporting(registry_of([Requests()])) as exporter:
        status, seen, body = get(exporter, "/metrics", accept)
    assert status == 200
    # Newer releases of the client library name their escaping scheme at the end.
    assert seen.removesuffix("; escaping=underscores") == content_type
    assert 'inferd_requests_total{model="a\\"b\\nc"} 3.0\n' in body
    assert body.endswith("# EOF\n") is content_type.startswith("application/openmetrics-text")


def test_the_process_and_its_garbage_collector_are_among_them() -> None:
    with exporting(registry_of([])) as exporter:
        body = get(exporter, "/metrics")[2]
    assert "process_resident_memory_bytes " in body
    assert "python_gc_collections_total{" in body
    assert "_created" not in body


@pytest.mark.parametrize(("answers", "status"), [(True, 200), (False, 503)])
def test_readyz_says_why(answers: bool, status: int) -> None:
    with exporting(readiness=lambda: (answers, "phase\nm 1: LOADING")) as exporter:
        assert get(exporter, "/readyz") == (status, "text/plain; charset=utf-8", "phase\nm 1: LOADING\n")


@pytest.mark.parametrize(
    ("seconds", "alive", "ready"), [(1.9, 200, 200), (2.0, 200, 503), (9.9, 200, 503), (10, 503, 503)]
)
def test_an_event_loop_that_does_not_turn_is_not_ready_and_later_not_alive(
    seconds: float, alive: int, ready: int
) -> None:
    with exporting(stalled=seconds) as exporter:
        assert get(exporter, "/healthz")[0] == alive
        code, _, body = get(exporter, "/readyz")
        assert code == ready
    assert (body == f"the event loop has not turned for {seconds:.1f} s\n") is (ready == 503)


def test_healthz_is_ok_whether_ready_or_not() -> None:
    with exporting(readiness=lambda: (False, "starting")) as exporter:
        assert get(exporter, "/healthz") == (200, "text/plain; charset=utf-8", "ok\n")


def test_answers_about_readiness_are_not_to_be_cached() -> None:
    with exporting() as exporter:
        connection = http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=10)
        connection.request("GET", "/readyz")
        assert connection.getresponse().headers["Cache-Control"] == "no-store"
        connection.close()


def test_another_path_says_which_there_are() -> None:
    with exporting() as exporter:
        assert get(exporter, "/nope") == (404, "text/plain; charset=utf-8", f"paths: {PATHS}\n")


@pytest.mark.parametrize("path", PATHS.split(", "))
def test_head_has_the_headers_of_get_and_no_body(path: str) -> None:
    status = Status(server)
    status.start()
    status.stop()
    with exporting(registry_of([Requests()]), status=status) as exporter:
        seen, asked = ask(exporter, "HEAD", path), ask(exporter, "GET", path)
    assert seen[2] == ""
    assert len(asked[2]) > 0
    assert asked[0] == seen[0] == 200
    # What is measured afresh for each answer differs in length.
    varying = {"Date"} | ({"Content-Length"} if path in ("/metrics", "/status.json") else set())
    assert {k: v for k, v in seen[1].items() if k not in varying} == {
        k: v for k, v in asked[1].items() if k not in varying
    }
    assert int(seen[1]["Content-Length"]) > 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "get"])
@pytest.mark.parametrize("path", PATHS.split(", "))
def test_another_method_says_which_there_are(method: str, path: str) -> None:
    with exporting() as exporter:
        status, headers, body = ask(exporter, method, path)
    assert (status, headers["Allow"], body) == (405, "GET, HEAD", "methods: GET, HEAD\n")


def test_another_path_is_not_found_by_any_method() -> None:
    with exporting() as exporter:
        assert ask(exporter, "POST", "/nope")[0] == 404


def test_the_page_is_sent_with_its_policy_and_is_not_to_be_cached() -> None:
    status = Status(server)
    with exporting(status=status) as exporter:
        code, headers, body = ask(exporter, "GET", "/")
    assert (code, body) == (200, status.page.body.decode())
    assert headers["Content-Security-Policy"] == status.page.policy
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")


@pytest.mark.parametrize(
    ("query", "points"),
    [("", 3), ("?since=0", 3), ("?since=2", 2), ("?since=4", 0), ("?since=5", 3), ("?since=%00", 3), ("?since=-1", 3)],
)
def test_figures_are_json_from_the_reading_on_that_is_asked_for(query: str, points: int) -> None:
    readings = iter(range(100))
    status = Status(lambda: server(next(readings), [model("a", outcomes={"ok": 1})]))
    for _ in range(4):
        status._sample()
    with exporting(status=status) as exporter:
        code, headers, body = ask(exporter, "GET", f"/status.json{query}")
    assert (code, headers["Content-Type"], headers["Cache-Control"]) == (200, "application/json", "no-store")
    live = json.loads(body)
    assert (live["service"], live["sequence"]) == ("inferd", 4)
    assert len(live["models"][0]["history"]["answered"]) == points


def test_without_a_reading_there_are_no_figures() -> None:
    with exporting() as exporter:
        assert get(exporter, "/status.json") == (503, "text/plain; charset=utf-8", "no figures yet\n")


def test_a_silent_client_delays_no_other() -> None:
    with exporting() as exporter, socket.create_connection(("127.0.0.1", exporter.port)):
        assert get(exporter, "/healthz")[0] == 200


@pytest.mark.parametrize("sent", [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\n\r\n", b"\xff\x00\r\n\r\n"])
def test_a_client_that_goes_away_leaves_no_traceback(sent: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with exporting(registry_of([Requests()])) as exporter:
        for _ in range(20):
            client = socket.create_connection(("127.0.0.1", exporter.port))
            client.sendall(sent)
            # Closing with a reset, as a killed process does.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        assert get(exporter, "/healthz")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_taken_port_is_a_configuration_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError) as refused:
            Exporter("127.0.0.1", port, Pages(CollectorRegistry(), ready, Status(server)))
    assert str(refused.value) == f"metrics_bind: can't listen on 127.0.0.1:{port}: Address already in use"


def test_it_listens_on_ipv6_where_that_is_asked_for() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with exporting(host="::1") as exporter:
        assert get(exporter, "/healthz", host="::1")[0] == 200


def test_closing_frees_the_port_and_closing_again_is_harmless() -> None:
    with exporting() as exporter:
        port = exporter.port
    exporter.close()
    socket.create_server(("127.0.0.1", port)).close()


def test_it_may_be_closed_before_it_was_started() -> None:
    exporter = Exporter("127.0.0.1", 0, Pages(CollectorRegistry(), ready, Status(server)))
    exporter.close()
    socket.create_server(("127.0.0.1", exporter.port)).close()
