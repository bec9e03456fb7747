"""The metrics endpoint by itself, on a real socket."""

import http.client
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from inferd.errors import ConfigurationError
from inferd.metrics.exporter import Exporter, ModelLoad, StateCollector, registry_of

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
    registry: CollectorRegistry | None = None, readiness: Ready = ready, host: str = "127.0.0.1"
) -> Iterator[Exporter]:
    exporter = Exporter(host, 0, registry or CollectorRegistry(), readiness)
    exporter.start()
    try:
        yield exporter
    finally:
        exporter.close()


def get(exporter: Exporter, path: str, accept: str = "*/*", host: str = "127.0.0.1") -> tuple[int, str, str]:
    """Status, content type and body."""
    connection = http.client.HTTPConnection(host, exporter.port, timeout=10)
    try:
        connection.request("GET", path, headers={"Accept": accept})
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode()
    finally:
        connection.close()


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


def test_state_is_read_when_it_is_asked_for() -> None:
    state = {"ready": False}
    models = [("m", "1", True), ("m", "2", False)]
    loads = [ModelLoad("m", "1", waiting=3, running=2, limit=40, sequences=7)]
    collector = StateCollector(lambda: (state["ready"], ""), lambda: models, lambda: loads, "1.2.3", "2026.4")
    with exporting(registry_of([collector])) as exporter:
        before = get(exporter, "/metrics")[2]
        state["ready"] = True
        after = get(exporter, "/metrics")[2]
    assert "\ninferd_ready 0.0\n" in before
    assert "\ninferd_ready 1.0\n" in after
    of = '{model="m",version="1"}'
    for name, value in (("queue_length", 3), ("runs", 2), ("in_flight_limit", 40), ("sequences", 7)):
        assert f"\ninferd_{name}{of} {value}.0\n" in after
    assert '\ninferd_model_ready{model="m",version="1"} 1.0\n' in after
    assert '\ninferd_model_ready{model="m",version="2"} 0.0\n' in after
    assert 'openvino="2026.4"' in after
    assert 'version="1.2.3"' in after


@pytest.mark.parametrize(("answers", "status"), [(True, 200), (False, 503)])
def test_readyz_says_why(answers: bool, status: int) -> None:
    with exporting(readiness=lambda: (answers, "phase\nm 1: LOADING")) as exporter:
        assert get(exporter, "/readyz") == (status, "text/plain; charset=utf-8", "phase\nm 1: LOADING\n")


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
        assert get(exporter, "/nope") == (404, "text/plain; charset=utf-8", "paths: /metrics, /healthz, /readyz\n")


def test_a_client_that_says_nothing_holds_up_nobody() -> None:
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


def test_a_port_that_is_taken_is_a_configuration_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError) as refused:
            Exporter("127.0.0.1", port, CollectorRegistry(), ready)
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
    exporter = Exporter("127.0.0.1", 0, CollectorRegistry(), ready)
    exporter.close()
    socket.create_server(("127.0.0.1", exporter.port)).close()
