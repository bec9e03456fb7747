"""Counts what became of every request, in plain list cells with one writer.

The event loop's thread writes; the exporter's thread reads while it does, so a scrape
may see a request in one series a moment before another, never a torn number. A cell
costs a fifth of the client library's own instruments.
"""

import time
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from inferd.metrics import instruments
from inferd.requests import Observation

_BOUNDS = instruments.LATENCY_BUCKETS


class LatencyCell:
    """One histogram: a count a bucket, and the sum in seconds."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(_BOUNDS, seconds)] += 1
        self.total += seconds

    def cumulative(self) -> tuple[list[tuple[str, float]], int]:
        """Bucket boundary -> requests at or below it, and their number."""
        rising, running = [], 0
        for bound, count in zip((*map(str, _BOUNDS), "+Inf"), list(self.counts), strict=True):
            running += count
            rising.append((bound, float(running)))
        return rising, running


@dataclass(slots=True)
class Duration:
    """How often a stage was passed and its nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class BatchStatistics:
    """Stages of the executions of one batch size."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class Statistics:
    """What the statistics RPC answers for one model version; counts since it was first loaded.

    ``last_inference`` is milliseconds since the epoch, 0 for never.
    """

    last_inference: int = 0
    inferences: int = 0
    executions: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: dict[int, BatchStatistics] = field(default_factory=dict)

    def add(self, seen: Observation) -> None:
        """Count one request that ended well, and its run where it leads it."""
        stages = seen.stages
        self.last_inference = time.time_ns() // 1_000_000
        self.inferences += seen.batch
        self.executions += seen.leader
        self.success.add(stages.total())
        self.queue.add(stages.queue())
        wheres: list[Statistics | BatchStatistics] = [self]
        if seen.leader:
            wheres.append(self.batches.setdefault(seen.run_rows, BatchStatistics()))
        for where in wheres:
            where.compute_input.add(stages.input())
            where.compute_infer.add(stages.compute())
            where.compute_output.add(stages.output())


class Recorder(Collector):
    """Takes observations, gives series and statistics."""

    def __init__(self) -> None:
        self._latency: dict[tuple[str, str, str], LatencyCell] = {}
        self._statistics: dict[tuple[str, str], Statistics] = {}

    def observe(self, seen: Observation) -> None:
        """Count one request that has ended."""
        key = (seen.model, seen.version, seen.outcome)
        cell = self._latency.get(key)
        if cell is None:
            cell = self._latency[key] = LatencyCell()
        cell.add(seen.stages.total() / 1e9)
        if seen.model == instruments.OTHER:
            return
        statistics = self.statistics(seen.model, seen.version)
        if seen.outcome == "ok":
            statistics.add(seen)
        else:
            statistics.fail.add(seen.stages.total())

    def statistics(self, model: str, version: str) -> Statistics:
        """The statistics of one model version, all zero when nothing was observed yet."""
        return self._statistics.setdefault((model, version), Statistics())

    def collect(self) -> Iterator[Metric]:
        """The series as they stand; called by the exporter on its own thread."""
        requests = CounterMetricFamily(
            instruments.REQUESTS.name, instruments.REQUESTS.help, labels=instruments.REQUESTS.labels
        )
        seconds = HistogramMetricFamily(
            instruments.REQUEST_SECONDS.name,
            instruments.REQUEST_SECONDS.help,
            labels=instruments.REQUEST_SECONDS.labels,
        )
        for key, cell in list(self._latency.items()):
            buckets, count = cell.cumulative()
            requests.add_metric(key, count)
            seconds.add_metric(key, buckets=buckets, sum_value=cell.total)
        yield requests
        yield seconds
