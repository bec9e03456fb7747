"""A collector's series as Prometheus reads them."""

from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

Scrape = dict[tuple[str, ...], float]


def scraped(collector: Collector) -> Scrape:
    """Every sample by its name and then its label values in the order of the labels' names."""
    registry = CollectorRegistry()
    registry.register(collector)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }


def named(scrape: Scrape, name: str) -> Scrape:
    """The series of that name, by their label values alone."""
    return {key[1:]: value for key, value in scrape.items() if key[0] == name}
