"""Merges the series of several workers into those of one server."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from threading import Lock

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from inferd.exposition import exposition
from inferd.exposition.scrape import Scrape
from inferd.metrics import instruments, merge_text
from inferd.metrics.families import HeadSamples, counter, gauge
from inferd.metrics.retired_counters import RetiredCounters

# Number of the worker, and of the process that is it.
Key = tuple[int, int]
Said = Callable[[], tuple[Mapping[Key, bytes], Collection[Key]]]
"""What the workers that answer say, and all that there are."""

SUPERVISOR = "supervisor"

# What the client library exports of each process. The others are added.
_PROCESS: Mapping[str, merge_text.Rule] = {
    # The youngest: so that a restart of any is seen.
    "process_start_time_seconds": "max",
    # The process that is nearest to its limit.
    "process_open_fds": "max",
    "process_max_fds": "min",
}


def rule(family: str) -> merge_text.Rule:
    """How the series of ``family`` are merged, as declared with it."""
    return _DECLARED.get(family) or _PROCESS.get(family, "sum")


_DECLARED: Mapping[str, merge_text.Rule] = {one.name: one.merged for one in instruments.ALL}


def text_of(scrape: Scrape) -> bytes:
    """All that a worker exports, for its supervisor."""
    return scrape.answer(exposition.CONTENT_TYPE, "")[1]


class MergedCollector(Collector):
    """Asks the workers at each scrape. ``own`` are the supervisor's, which count as one more worker's."""

    def __init__(self, said: Said, own: Iterable[Collector]) -> None:
        self._said = said
        self._own = CollectorRegistry(auto_describe=False)
        for collector in own:
            self._own.register(collector)
        ProcessCollector(registry=self._own)
        GCCollector(registry=self._own)
        self._counters: RetiredCounters[Key, merge_text.Families] = RetiredCounters(
            lambda before, last: merge_text.add_retired(before, last, rule),
            lambda before, now: merge_text.vanished_series(before, now, rule),
        )
        # Two scrapes at once must not take what the workers said in the wrong order.
        self._one = Lock()

    def collect(self) -> Iterator[Metric]:
        with self._one:
            said, present = self._said()
            self._counters.update({key: merge_text.parse(text.decode()) for key, text in said.items()}, present)
            parts = {str(index): part for (index, _), part in sorted(self._counters.parts.items())}
            if (retired := self._counters.retired) is not None:
                retired = self._counters.retired = merge_text.keep_named(retired, self._counters.parts.values())
        parts[SUPERVISOR] = merge_text.parse(b"".join(exposition.pieces(self._own.collect())).decode())
        for family in merge_text.merge(parts, retired, rule):
            metric = Metric(family.name, family.help, family.kind, family.unit)
            metric.samples = HeadSamples(family.values)  # type: ignore[assignment]  # it is only iterated over
            yield metric


class WorkersCollector(Collector):
    """How many workers are wanted, how many serve, and how often one was replaced."""

    def __init__(self, read: Callable[[], tuple[int, int, int]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        wanted, serving, replaced = self._read()
        yield gauge(instruments.WORKERS, [((), wanted)])
        yield gauge(instruments.WORKERS_READY, [((), serving)])
        yield counter(instruments.WORKERS_REPLACED, [((), replaced)])


def merged_registry(said: Said, own: Iterable[Collector]) -> CollectorRegistry:
    """The registry of a supervisor."""
    registry = CollectorRegistry(auto_describe=False, support_collectors_without_names=True)
    registry.register(MergedCollector(said, own))
    return registry
