"""Series under Triton's names, as a dashboard for Triton queries them."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Thread
from wsgiref.simple_server import WSGIServer

import pytest
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client import generate_latest as plain_text
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain_text

from inferd.exposition.triton import TritonCollector, reference_section
from inferd.metrics.statistics import Duration, Statistics
from tests.metrics.scraped import scraped
from tests.system.prometheus import Prometheus, needs

SEEN = Statistics(
    inferences=70,
    executions=12,
    success=Duration(10, 5_000_500),
    fail=Duration(3, 9_000_000),
    queue=Duration(10, 1_000_000),
    compute_input=Duration(10, 200_000),
    compute_infer=Duration(10, 3_000_000),
    compute_output=Duration(10, 800_000),
)
# Spelt out, as they are what other people's queries say.
VALUES = {
    "nv_inference_request_success": 10,
    "nv_inference_request_failure": 3,
    "nv_inference_count": 70,
    "nv_inference_exec_count": 12,
    "nv_inference_request_duration_us": 5000.5,
    "nv_inference_queue_duration_us": 1000,
    "nv_inference_compute_input_duration_us": 200,
    "nv_inference_compute_infer_duration_us": 3000,
    "nv_inference_compute_output_duration_us": 800,
    "nv_inference_pending_request_count": 4,
}


def registry(collector: TritonCollector) -> CollectorRegistry:
    found = CollectorRegistry()
    found.register(collector)
    return found


def test_each_name_has_its_value_for_each_model_version() -> None:
    collector = TritonCollector(lambda: [("m", "1", SEEN, 4), ("n", "2", Statistics(), 0)])
    wanted = {(name, "m", "1"): value for name, value in VALUES.items()}
    assert scraped(collector) == wanted | dict.fromkeys(((name, "n", "2") for name in VALUES), 0)


def test_what_is_gone_has_its_counters_and_nothing_waits() -> None:
    collector = TritonCollector(lambda: [("m", "1", SEEN, None)])
    counted = {name: value for name, value in VALUES.items() if name != "nv_inference_pending_request_count"}
    assert scraped(collector) == {(name, "m", "1"): value for name, value in counted.items()}


def test_samples_are_called_the_same_in_both_formats() -> None:
    exported = registry(TritonCollector(lambda: [("m", "1", SEEN, 4)]))
    for text in (plain_text(exported).decode(), openmetrics(exported).decode()):
        lines = {line.split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
        assert lines == {f'{name}{{model="m",version="1"}}' for name in VALUES}
    families = parse_plain_text(plain_text(exported).decode())
    assert {family.name: len(family.samples) for family in families} == dict.fromkeys(VALUES, 1)


def test_what_only_rises_is_of_no_type_that_could_fall() -> None:
    families = list(TritonCollector(list).collect())
    assert [family.name for family in families] == list(VALUES)
    assert [family.type for family in families] == ["unknown"] * 9 + ["gauge"]


def test_everything_is_read_when_it_is_asked_for() -> None:
    rows: list[tuple[str, str, Statistics, int | None]] = [("m", "1", SEEN, 4)]
    collector = TritonCollector(lambda: rows)
    assert len(scraped(collector)) == len(VALUES)
    rows.clear()
    assert scraped(collector) == {}


def test_the_reference_has_a_row_for_each() -> None:
    rows = [row.split(" | ") for row in reference_section().splitlines() if row.startswith("| `")]
    assert [row[0] for row in rows] == [f"| `{name}`" for name in VALUES]
    assert {row[1] for row in rows[:-1]} == {"counter"}
    assert rows[-1][1] == "gauge"
    assert {row[2] for row in rows} == {"model, version"}


@contextmanager
def exported(collector: TritonCollector) -> Iterator[str]:
    """HOST:PORT that answers scrapes, in whichever format is asked for."""
    server: WSGIServer
    thread: Thread
    server, thread = start_http_server(0, "127.0.0.1", registry(collector))
    with closing(server.socket):
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@needs("prometheus")
def test_a_real_prometheus_answers_the_queries_of_a_triton_dashboard(tmp_path: Path) -> None:
    seen = Statistics()

    def more() -> list[tuple[str, str, Statistics, int | None]]:
        # Each scrape finds ten more requests of 300 us in OpenVINO.
        seen.success.count += 10
        seen.compute_infer.ns += 10 * 300_000
        return [("m", "1", seen, 4)]

    with exported(TritonCollector(more)) as target, Prometheus(tmp_path, [target]) as prometheus:
        prometheus.wait_for_scrapes(3)
        [rate] = prometheus.query('rate(nv_inference_request_success{model="m",version="1"}[1m])')
        assert rate["value"] > 0
        mean = "rate(nv_inference_compute_infer_duration_us[1m]) / rate(nv_inference_request_success[1m])"
        [each] = prometheus.query(mean)
        assert each["value"] == pytest.approx(300)
        assert prometheus.query("nv_inference_pending_request_count")[0]["value"] == 4
        names = {one["metric"]["__name__"] for one in prometheus.query('{__name__=~"nv_.*"}')}
        assert names == set(VALUES)
