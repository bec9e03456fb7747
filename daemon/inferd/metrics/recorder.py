"""Counts the outcome of every request.

The event loop's thread writes while the exporter's thread reads, so a scrape may see a request in
one series a moment before another.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from threading import Lock

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from inferd.metrics import instruments
from inferd.metrics.families import counter, histogram
from inferd.metrics.grace import Grace
from inferd.metrics.histogram import Histogram
from inferd.metrics.statistics import BatchStatistics, Duration, Statistics
from inferd.requests import Observation

_NANO = 10**9
_STAGE_EDGES = Histogram(instruments.STAGE_BUCKETS, _NANO).edges
_FIRST_EDGE = _STAGE_EDGES[0]

# A model's name and a version number; the version is empty for requests that reached none.
Key = tuple[str, str]

_OTHERS: Key = (instruments.OTHER, "")

MOST_GONE = 256
"""Limit on removed versions whose counters are kept; beyond it, those removed first lose theirs at once."""


class VersionCounters:
    """The counts of one model version. ``requests`` has (device, outcome, reason) -> number."""

    def __init__(self) -> None:
        self.objective: float | None = None
        self.requests: dict[tuple[str, str, str], int] = {}
        self.answered = Histogram(instruments.LATENCY_BUCKETS, _NANO)
        self.stages = tuple(Histogram(instruments.STAGE_BUCKETS, _NANO) for _ in instruments.STAGES)
        self._rows = Histogram(instruments.ROWS_BUCKETS)
        self.inferences = 0
        self.received = 0
        self.sent = 0
        # Judgements under earlier objectives, minus what the present buckets say about the same requests.
        self._before = (0, 0)
        self._last = 0
        self._failed = Duration()
        # Rows of a run -> runs, and nanoseconds of copying in, computing and answering.
        self._batches: dict[int, list[int]] = {}

    def set_objective(self, objective: float | None) -> None:
        """Make the latency ``objective``, in seconds, a bucket boundary, in place of an earlier one.

        Earlier answers keep the judgement of the objective in force at the time, if any.
        """
        if objective == self.objective:
            return
        met, missed = self.judged()
        bounds = {*instruments.LATENCY_BUCKETS, *([] if objective is None else [objective])}
        self.objective, self.answered, self._before = objective, self.answered.rebound(sorted(bounds)), (0, 0)
        now_met, now_missed = self.judged()
        self._before = (met - now_met, missed - now_missed)

    def add(self, seen: Observation) -> None:
        """Count one request; called for every request, so written for speed."""
        # Unpacked at once: attribute access to a named tuple is slower.
        _, _, _, stages, device, _, rows, batch_rows, leader, error, received, sent, trace = seen
        ended = (device, "ok", "") if error is None else (device, error.outcome, error.reason)
        try:
            self.requests[ended] += 1
        except KeyError:
            self.requests[ended] = 1
        self.received += received
        total = stages.answered - stages.received
        if error is not None:
            self._failed.add(total)
            return
        cell = self.answered
        at = bisect_left(cell.edges, total)
        cell.counts[at] += 1
        cell.total += total
        if trace is not None and trace.sampled:
            cell.exemplars[at] = (trace.trace_id, total / _NANO, time.time())
        spent = stages.durations()
        for cell, ns in zip(self.stages, spent):  # noqa: B905 - as many as there are, and checking costs
            # Six of eight are nearly always in the first bucket.
            cell.counts[bisect_left(_STAGE_EDGES, ns) if ns > _FIRST_EDGE else 0] += 1
            cell.total += ns
        self.inferences += rows
        self.sent += sent
        self._last = stages.answered
        if leader:
            batch = self._batches.get(batch_rows)
            if batch is None:
                batch = self._batches[batch_rows] = [0, 0, 0, 0]
            batch[0] += 1
            batch[1] += spent[3]
            batch[2] += spent[4]
            batch[3] += spent[5] + spent[6] + spent[7]

    @property
    def number(self) -> int:
        """Requests of any outcome; while it is unchanged, so is everything else."""
        return sum(self.requests.copy().values())

    def judged(self) -> tuple[int, int]:
        """Successful requests within the objective, and later ones."""
        met, missed = self._before
        if self.objective is None:
            return met, missed
        counts, place = tuple(self.answered.counts), self.answered.bounds.index(self.objective) + 1
        return met + sum(counts[:place]), missed + sum(counts[place:])

    def batch_rows(self) -> Histogram:
        """Rows per successful run, from the counts per number of rows."""
        cell, counts, total = self._rows, [0] * len(self._rows.counts), 0
        for rows, (runs, *_) in self._batches.copy().items():
            counts[bisect_left(cell.edges, rows)] += runs
            total += rows * runs
        cell.counts, cell.total = counts, total
        return cell

    def statistics(self) -> Statistics:
        """The same in the form of the statistics RPC."""
        count = sum(self.answered.counts)
        _, queue, batch, copied_in, computed, handed_over, copied_out, encoded = (int(s.total) for s in self.stages)
        return Statistics(
            (time.time_ns() - (time.monotonic_ns() - self._last)) // 1_000_000 if self._last else 0,
            self.inferences,
            sum(runs for runs, *_ in self._batches.copy().values()),
            Duration(count, int(self.answered.total)),
            Duration(self._failed.count, self._failed.ns),
            Duration(count, queue + batch),
            Duration(count, copied_in),
            Duration(count, computed),
            Duration(count, handed_over + copied_out + encoded),
            {
                rows: BatchStatistics(*(Duration(runs, ns) for ns in (copied_in, computed, answered)))
                for rows, (runs, copied_in, computed, answered) in self._batches.copy().items()
            },
        )


class Recorder(Collector):
    """Takes observations, gives series and statistics.

    A removed version keeps its counters for ``grace`` seconds (see :class:`Grace`), and continues from them if it
    returns within that time.
    """

    def __init__(self, grace: float = 300.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_version: dict[Key, VersionCounters] = {}
        # Removed versions' counters, in the order of removal.
        self._gone: dict[Key, VersionCounters] = {}
        self._grace: Grace[Key] = Grace(grace)
        self._dropped: set[Key] = set()
        # Scrapes, on their threads, drop removed versions' counters, while the versions may return.
        self._leaving = Lock()

    def observe(self, seen: Observation) -> None:
        """Count one request that has ended."""
        key = seen[:2]
        counters = self._by_version.get(key)
        if counters is None:
            counters = self._by_version[key] = VersionCounters()
        counters.add(seen)

    def follow(self, objectives: Mapping[Key, float | None]) -> frozenset[Key]:
        """Take the present versions, with their latency objectives in seconds. Returns the versions whose counters were
        dropped since the last call: their grace was over, or more than :data:`MOST_GONE` versions were removed.

        Counts for a model without a version stay as long as the model has a version.
        """
        with self._leaving:
            for key, objective in objectives.items():
                self._by_version.setdefault(key, VersionCounters()).set_objective(objective)
            models = {model for model, _ in objectives}
            gone = {
                key: counters
                for key, counters in self._by_version.copy().items()
                if key not in objectives and key != _OTHERS and (key[1] or key[0] not in models)
            }
            left = [*(key for key in self._gone if key in gone), *(key for key in gone if key not in self._gone)]
            self._gone = {key: gone[key] for key in left}
            self._drop(left[: max(0, len(left) - MOST_GONE)])
            dropped, self._dropped = frozenset(self._dropped - objectives.keys()), set()
        return dropped

    def counted(self) -> frozenset[Key]:
        """The versions whose counters a scrape would show now, including removed ones; on any thread."""
        with self._leaving:
            gone = {key: counters.number for key, counters in self._gone.items()}
            self._drop(gone.keys() - self._grace.shows(gone, self._clock()))
        return frozenset(self._by_version.copy())

    def _drop(self, keys: Iterable[Key]) -> None:
        for key in keys:
            del self._gone[key], self._by_version[key]
            self._dropped.add(key)

    def counters(self, model: str, version: str) -> VersionCounters:
        """The counters of that version; an empty record if there are none."""
        return self._by_version.get((model, version)) or VersionCounters()

    def statistics(self, model: str, version: str) -> Statistics:
        """The statistics of one model version, all zero if nothing was observed yet."""
        return self.counters(model, version).statistics()

    def collect(self) -> Iterator[Metric]:
        """All series; called by the exporter on its own thread."""
        shown = self.counted()
        by_version = {key: counters for key, counters in self._by_version.copy().items() if key in shown}
        versions = {key: counters for key, counters in by_version.items() if key[1]}
        requests = (
            ((*key, *ended), n) for key, counters in by_version.items() for ended, n in counters.requests.copy().items()
        )
        yield counter(instruments.REQUESTS, requests)
        yield counter(instruments.RECEIVED_BYTES, ((key, counters.received) for key, counters in by_version.items()))
        yield counter(instruments.SENT_BYTES, ((key, counters.sent) for key, counters in versions.items()))
        yield counter(instruments.INFERENCES, ((key, counters.inferences) for key, counters in versions.items()))
        judged = [(key, counters.judged()) for key, counters in versions.items() if counters.objective is not None]
        yield counter(instruments.OBJECTIVE_MET, ((key, met) for key, (met, _) in judged))
        yield counter(instruments.OBJECTIVE_MISSED, ((key, missed) for key, (_, missed) in judged))
        yield histogram(instruments.REQUEST_SECONDS, ((key, counters.answered) for key, counters in versions.items()))
        stages = (
            ((*key, stage), cell)
            for key, counters in versions.items()
            for stage, cell in zip(instruments.STAGES, counters.stages, strict=True)
        )
        yield histogram(instruments.STAGE_SECONDS, stages)
        yield histogram(instruments.BATCH_ROWS, ((key, counters.batch_rows()) for key, counters in versions.items()))
