"""A scrape is answered in the format and encoding that it asks for."""

import gzip
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from inferd.exposition.scrape import Scrape

# What Prometheus 2 sends.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


class Requests(Collector):
    """One counter, declared as collectors may."""

    def collect(self) -> Iterator[Metric]:
        yield self.describe()[0]

    def describe(self) -> list[Metric]:
        requests = CounterMetricFamily("requests", 'A "text".', labels=("model",))
        requests.add_metric(('a"b\nc',), 3)
        return [requests]


def scraping() -> Scrape:
    registry = CollectorRegistry()
    registry.register(Requests())
    return Scrape(registry)


def seconds(body: str) -> float:
    """What the scrape says of the one before."""
    (said,) = [line for line in body.splitlines() if line.startswith("inferd_scrape_duration_seconds ")]
    return float(said.split()[1])


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        (PROMETHEUS, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    ],
)
def test_the_format_is_the_one_asked_for(accept: str, content_type: str) -> None:
    headers, body = scraping().answer(accept, "")
    assert dict(headers)["Content-Type"].removesuffix("; escaping=underscores") == content_type
    assert b'requests_total{model="a\\"b\\nc"} 3.0\n' in body
    assert body.endswith(b"# EOF\n") is content_type.startswith("application")


def test_prometheus_reads_what_the_client_library_would_have_written() -> None:
    registry = CollectorRegistry()
    registry.register(Requests())
    scrape = Scrape(registry)
    _, body = scrape.answer(PROMETHEUS, "")
    theirs = openmetrics(registry).decode().splitlines()
    assert [ours for ours, line in zip(body.decode().splitlines(), theirs, strict=True) if ours != line] == [
        "inferd_scrape_duration_seconds 0.0"
    ]


@pytest.mark.parametrize("accept", ["*/*", PROMETHEUS])
def test_it_is_compressed_where_that_is_accepted(accept: str) -> None:
    headers, body = scraping().answer(accept, "gzip")
    assert dict(headers)["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == scraping().answer(accept, "")[1]


@pytest.mark.parametrize("accept", ["*/*", PROMETHEUS])
def test_only_some_series_can_be_asked_for(accept: str) -> None:
    _, body = scraping().answer(accept, "", ["requests_total"])
    assert b"requests_total" in body
    assert b"inferd_scrape" not in body


def test_each_scrape_says_how_long_the_one_before_took() -> None:
    scrape = scraping()
    first, second = (scrape.answer(PROMETHEUS, "")[1].decode() for _ in range(2))
    assert seconds(first) == 0
    assert seconds(second) > 0
    assert [family.name for family in text_string_to_metric_families(second)] == [
        "requests",
        "inferd_scrape_duration_seconds",
    ]


def test_scrapes_that_come_while_one_is_made_share_the_next() -> None:
    begun, go_on, made = Event(), Event(), []

    class Slow(Collector):
        def collect(self) -> Iterator[Metric]:
            made.append(len(made))
            begun.set()
            assert go_on.wait(60)
            yield GaugeMetricFamily("made", "how many were made", len(made))

    registry = CollectorRegistry()
    go_on.set()
    registry.register(Slow())
    scrape = Scrape(registry)
    go_on.clear()
    made.clear()
    with ThreadPoolExecutor(20) as pool:
        begun.clear()
        first = pool.submit(scrape.answer, "", "")
        assert begun.wait(60)
        others = [pool.submit(scrape.answer, "", "") for _ in range(15)]
        zipped = [pool.submit(scrape.answer, "", "gzip") for _ in range(4)]
        go_on.set()
        bodies = {other.result()[1] for other in others}
    assert b"made 1" in first.result()[1]
    # One who came late may have missed it.
    assert len(bodies) <= 3
    assert first.result()[1] not in bodies
    assert all(gzip.decompress(one.result()[1]) for one in zipped)
    assert len(made) < 12
