"""What became of the log's lines."""

from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from inferd.log_writer import LogWriter
from inferd.metrics import instruments
from inferd.metrics.families import counter


class LogCollector(Collector):
    """Reads ``writer`` at each scrape."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def collect(self) -> Iterator[Metric]:
        yield counter(instruments.LOG_LINES_LOST, [((), self._writer.lost)])
