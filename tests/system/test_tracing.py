"""Traces through the running daemon: from a client's metadata to a collector, the log and the metrics."""

import asyncio
import http.client
import secrets
import socket
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.span_collector import Collector, Received
from tests.system import echo_models
from tests.system.daemon import Daemon
from tests.system.wire import OK, connect, echo, method, request, steps

pytestmark = pytest.mark.system

STAGES = ["decode", "queue", "batch", "input", "compute", "handover", "output", "encode"]
PARENT = "b7ad6b7169203331"
# Spans are sent as they come, and not by way of a proxy.
ENVIRONMENT = {"OTEL_BSP_SCHEDULE_DELAY": "10", "no_grpc_proxy": "127.0.0.1"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return echo_models.write(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def daemon(repository: Path, cache_dir: Path, collector: Collector) -> Iterator[Daemon]:
    flags = ["--cache-dir", str(cache_dir), "--request-log", "all"]
    flags += ["--trace-endpoint", collector.endpoint, "--trace-ratio", "0"]
    with Daemon(repository, *flags, environment=ENVIRONMENT) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()
    assert daemon.events("spans not delivered") == []


class Client:
    """A client with a trace of its own, sampled or not."""

    def __init__(self, sampled: bool = True) -> None:
        self.trace_id = secrets.token_hex(16)
        self._metadata = [("traceparent", f"00-{self.trace_id}-{PARENT}-{sampled:02d}"), ("tracestate", "congo=t61")]

    def infer(self, daemon: Daemon, *messages: object) -> list[StatusCode]:
        """How each call ended."""

        async def ask() -> list[StatusCode]:
            async with connect(daemon.grpc) as channel:
                infer = method(channel, "ModelInfer")
                return [await infer(message, metadata=self._metadata).code() for message in messages]

        return asyncio.run(ask())

    def stream(self, daemon: Daemon, *messages: object) -> int:
        """How many answers came."""

        async def talk() -> int:
            async def each() -> Any:
                for message in messages:
                    yield message

            async with connect(daemon.grpc) as channel:
                return len([a async for a in method(channel, "ModelStreamInfer")(each(), metadata=self._metadata)])

        return asyncio.run(talk())

    def spans(self, collector: Collector, requests: int = 1) -> list[tuple[Received, list[Received]]]:
        """The span of each request of this client, and those within it in the order they began."""

        def ours(received: Sequence[Received]) -> list[Received]:
            return [span for span in received if span.trace_id == self.trace_id and span.kind == "SERVER"]

        # A request's own span is sent behind those of its stages.
        received = collector.wait_for(lambda received: len(ours(received)) >= requests)
        return [
            (whole, sorted((s for s in received if s.parent_id == whole.span_id), key=lambda s: (s.start, s.end)))
            for whole in ours(received)
        ]


def log_lines(daemon: Daemon, client: Client) -> list[dict[str, Any]]:
    return [line for line in daemon.events("request") if line.get("trace_id") == client.trace_id]


# -- spans ------------------------------------------------------------------------


def test_a_call_is_a_span_below_the_clients_and_its_stages_fill_it(daemon: Daemon, collector: Collector) -> None:
    client = Client()
    assert client.infer(daemon, steps(20, "the id")) == [OK]
    ((whole, stages),) = client.spans(collector)
    assert (whole.name, whole.parent_id, whole.parent_is_remote) == ("infer steps", PARENT, True)
    assert (whole.state, whole.status) == ("congo=t61", "UNSET")
    assert whole.attributes["inferd.request_id"] == "the id"
    assert whole.attributes["inferd.device"] == "CPU"
    assert whole.attributes["rpc.response.status_code"] == "OK"
    assert whole.resource["service.name"] == "inferd"
    assert [stage.name for stage in stages] == [name for name in STAGES if name != "batch"]
    assert (stages[0].start, stages[-1].end) == (whole.start, whole.end)
    assert all(one.end == next_one.start for one, next_one in pairwise(stages))
    assert sum(stage.duration for stage in stages) == whole.duration
    assert max(stages, key=lambda stage: stage.duration).name == "compute"


def test_each_request_of_a_stream_is_a_span_of_its_own(daemon: Daemon, collector: Collector) -> None:
    client = Client()
    assert client.stream(daemon, echo([1], "a"), request("echo", {}, "b"), echo([3], "c")) == 3
    wholes = [whole for whole, _ in client.spans(collector, 3)]
    assert {whole.attributes["inferd.request_id"]: whole.attributes["inferd.outcome"] for whole in wholes} == {
        "a": "ok",
        "b": "invalid",
        "c": "ok",
    }
    assert {whole.parent_id for whole in wholes} == {PARENT}
    assert len({whole.span_id for whole in wholes}) == 3


def test_a_request_that_fails_is_a_span_up_to_where_it_came(daemon: Daemon, collector: Collector) -> None:
    client = Client()
    assert client.infer(daemon, request("nosuch", {})) == [StatusCode.NOT_FOUND]
    ((whole, stages),) = client.spans(collector)
    assert whole.name == "infer _OTHER"
    assert [stage.name for stage in stages] == ["decode"]
    assert whole.attributes["rpc.response.status_code"] == "NOT_FOUND"
    assert whole.attributes["inferd.error"] == "unknown model 'nosuch'"
    assert whole.status == "UNSET"


def test_a_request_whose_run_fails_is_an_error(daemon: Daemon, collector: Collector) -> None:
    client = Client()
    impossible = {"x": np.zeros(4, np.float32), "shape": np.array([3, 3])}
    assert client.infer(daemon, request("picky", impossible)) == [StatusCode.INTERNAL]
    ((whole, stages),) = client.spans(collector)
    assert "compute" in [stage.name for stage in stages]
    assert stages[-1].end == whole.end
    assert (whole.status, whole.attributes["error.type"]) == ("ERROR", "INTERNAL")


def test_an_unsampled_context_and_no_context_give_no_span(daemon: Daemon, collector: Collector) -> None:
    unsampled, sampled = Client(sampled=False), Client()
    before = len(collector.spans)
    assert unsampled.infer(daemon, echo([1])) == [OK]

    async def ask() -> None:
        async with connect(daemon.grpc) as channel:
            await method(channel, "ModelInfer")(echo([1]))
            await method(channel, "ModelInfer")(echo([1]), metadata=[("traceparent", "mistaken")])

    asyncio.run(ask())
    assert sampled.infer(daemon, echo([1])) == [OK]
    sampled.spans(collector)
    assert {span.trace_id for span in collector.spans[before:]} == {sampled.trace_id}


def test_requests_without_a_context_are_traced_by_the_ratio(
    repository: Path, cache_dir: Path, collector: Collector
) -> None:
    before = len(collector.spans)
    flags = ["--cache-dir", str(cache_dir), "--trace-endpoint", collector.endpoint, "--trace-ratio", "1"]
    with Daemon(repository, *flags, environment={"no_grpc_proxy": "127.0.0.1"}) as daemon:

        async def ask() -> None:
            async with connect(daemon.grpc) as channel:
                await method(channel, "ModelInfer")(echo([1]))

        asyncio.run(ask())
        # Not due to be sent for seconds: what is left is sent at the end.
        assert daemon.stop() == 0, daemon.log()
    (whole,) = [span for span in collector.spans[before:] if span.kind == "SERVER"]
    assert (whole.name, whole.parent_id) == ("infer echo", "")


# -- the log and the metrics ------------------------------------------------------


@pytest.mark.parametrize("sampled", [True, False])
def test_a_requests_log_line_leads_to_its_trace(daemon: Daemon, collector: Collector, sampled: bool) -> None:
    client = Client(sampled)
    assert client.infer(daemon, echo([1], "good"), request("echo", {}, "bad")) == [OK, StatusCode.INVALID_ARGUMENT]
    # A line may be read a little after the answer.
    last = Client()
    last.infer(daemon, echo([1]))
    last.spans(collector)
    lines = log_lines(daemon, client)
    assert [line["id"] for line in lines] == ["good", "bad"]
    if sampled:
        assert [line["span_id"] for line in lines] == [whole.span_id for whole, _ in client.spans(collector, 2)]


def exemplars(daemon: Daemon) -> set[str]:
    """The trace ids beside the buckets of the request durations."""
    connection = http.client.HTTPConnection(daemon.metrics, timeout=10)
    try:
        connection.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    return {
        sample.exemplar.labels["trace_id"]
        for family in text_string_to_metric_families(text)
        if family.name == "inferd_request_duration_seconds"
        for sample in family.samples
        if sample.exemplar is not None
    }


def test_a_sampled_requests_trace_is_an_exemplar_of_its_latency(daemon: Daemon) -> None:
    sampled, unsampled = Client(), Client(sampled=False)
    sampled.infer(daemon, steps(50))
    unsampled.infer(daemon, steps(50))
    found = exemplars(daemon)
    assert sampled.trace_id in found
    assert unsampled.trace_id not in found


# -- a collector that is not there ------------------------------------------------


def test_without_the_collector_requests_are_answered_and_the_daemon_ends(repository: Path, cache_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
    flags = ["--cache-dir", str(cache_dir), "--trace-endpoint", endpoint, "--trace-ratio", "1"]
    with Daemon(repository, *flags, environment=ENVIRONMENT) as daemon:
        assert Client().infer(daemon, *[echo([1])] * 500) == [OK] * 500
        daemon.wait_for("spans not delivered")
        assert Client().infer(daemon, *[echo([1])] * 500) == [OK] * 500
        # OpenTelemetry's own shutdown would wait for 30 s.
        assert daemon.stop(timeout=25) == 0, daemon.log()
    (line,) = daemon.events("spans not delivered")
    assert (line["level"], line["endpoint"]) == ("warning", endpoint)
    assert "UNAVAILABLE" in line["why"]
    assert "opentelemetry" not in daemon.log().lower()
