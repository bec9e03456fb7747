"""A supervisor's scrape: the sum of its workers' metrics, and its own."""

import shutil
import subprocess

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from inferd.errors import Cancelled
from inferd.exposition.exposition import CONTENT_TYPE
from inferd.exposition.merged import Key, WorkersCollector, merged_registry, rule, text_of
from inferd.exposition.scrape import Scrape
from inferd.metrics import instruments
from inferd.metrics.recorder import Recorder
from inferd.requests import Observation, Stages
from inferd.trace_context import TraceContext


class Worker:
    """One that counts, and says what it has counted."""

    def __init__(self) -> None:
        self.clock = 1000.0
        self.recorder = Recorder(300, lambda: self.clock)
        self.recorder.follow({("m", "1"): 0.05})
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self.recorder)
        self._scrape = Scrape(registry)

    def says(self) -> bytes:
        return text_of(self._scrape)

    def count(self, number: int, *, trace: TraceContext | None = None) -> None:
        for at in range(number):
            stages = Stages(received=0, answered=(at + 1) * 10_000_000)
            self.recorder.observe(Observation("m", "1", "", stages, trace=trace))
        self.recorder.observe(Observation("m", "1", "", Stages(answered=1), error=Cancelled("m")))


class Supervisor:
    """Scrapes ``workers``, by the number of each and of its process."""

    def __init__(self, workers: dict[Key, Worker]) -> None:
        self.workers, self.silent = workers, set[Key]()
        self._scrape = Scrape(merged_registry(self._said, [WorkersCollector(lambda: (2, len(self.workers), 1))]))

    def _said(self) -> tuple[dict[Key, bytes], list[Key]]:
        answers = {key: worker.says() for key, worker in self.workers.items() if key not in self.silent}
        return answers, list(self.workers)

    def text(self, accept: str = CONTENT_TYPE, *names: str) -> str:
        return self._scrape.answer(accept, "", names)[1].decode()

    def values(self) -> dict[tuple[str, ...], float]:
        return {
            (sample.name, *(v for k, v in sorted(sample.labels.items()) if k not in ("model", "version"))): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
        }


@pytest.fixture
def two() -> Supervisor:
    workers = {(0, 1): Worker(), (1, 1): Worker()}
    workers[0, 1].count(3)
    workers[1, 1].count(5)
    return Supervisor(workers)


OK = ("inferd_requests_total", "", "ok", "")


def test_counters_and_histograms_are_added(two: Supervisor) -> None:
    seen = two.values()
    assert seen[OK] == 8
    assert seen["inferd_requests_total", "", "cancelled", ""] == 2
    assert seen["inferd_request_duration_seconds_count",] == 8
    assert seen["inferd_request_duration_seconds_bucket", "0.05"] == 8
    assert seen["inferd_request_duration_seconds_bucket", "0.01"] == 2
    assert seen["inferd_request_duration_seconds_sum",] == pytest.approx(0.21)


def test_the_supervisor_says_what_only_it_knows(two: Supervisor) -> None:
    seen = two.values()
    assert (seen["inferd_workers",], seen["inferd_workers_ready",], seen["inferd_workers_replaced_total",]) == (2, 2, 1)
    # Its own, once; not those of its workers.
    assert seen["inferd_scrape_duration_seconds",] >= 0
    assert two.text().count("# TYPE inferd_scrape_duration_seconds") == 1


def test_what_a_replaced_worker_had_counted_stays_counted(two: Supervisor) -> None:
    assert two.values()[OK] == 8
    two.workers = {(0, 1): two.workers[0, 1], (1, 2): Worker()}
    assert two.values()[OK] == 8
    two.workers[1, 2].count(2)
    assert two.values()[OK] == 10


def test_the_sum_does_not_fall_where_one_drops_a_version_before_the_other(two: Supervisor) -> None:
    assert two.values()[OK] == 8
    for worker in two.workers.values():
        worker.recorder.follow({})
    assert two.values()[OK] == 8
    # The first to be over its grace.
    two.workers[0, 1].clock += 300
    assert two.values()[OK] == 8
    two.workers[0, 1].recorder.follow({("m", "1"): None})
    two.workers[0, 1].count(2)
    assert two.values()[OK] == 10
    two.workers[0, 1].recorder.follow({})
    assert two.values()[OK] == 10
    for worker in two.workers.values():
        worker.clock += 300
    assert OK not in two.values()
    two.workers[1, 1].recorder.follow({("m", "1"): None})
    two.workers[1, 1].count(1)
    assert two.values()[OK] == 1


def test_one_that_does_not_answer_counts_with_what_it_said_last(two: Supervisor) -> None:
    two.text()
    two.silent = {(1, 1)}
    two.workers[0, 1].count(1)
    assert two.values()[OK] == 9


def test_exemplars_go_through(two: Supervisor) -> None:
    two.workers[1, 1].count(1, trace=TraceContext("ab" * 16, "cd" * 8, "", sampled=True))
    assert '# {trace_id="abababababababababababababababab"}' in two.text()
    assert "_created" not in two.text()


def test_the_plain_format_says_the_same(two: Supervisor) -> None:
    plain = two.text("text/plain")
    assert 'inferd_requests_total{device="",model="m",outcome="ok",reason="",version="1"} 8.0' in plain
    assert "# EOF" not in plain
    some = two.text("text/plain", "inferd_workers")
    assert [line for line in some.splitlines() if not line.startswith("#")] == ["inferd_workers 2.0"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_in_it_that_one_worker_does_not_have(two: Supervisor) -> None:
    def complaints(text: str) -> set[str]:
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        return set(checked.stderr.splitlines())

    registry = CollectorRegistry(auto_describe=False)
    registry.register(two.workers[0, 1].recorder)
    alone = Scrape(registry).answer("text/plain", "")[1].decode()
    assert complaints(two.text("text/plain")) <= complaints(alone)


def test_every_instrument_has_a_rule() -> None:
    assert {rule(one.name) for one in instruments.ALL} >= {"sum", "max", "min", "own"}
    # What the kernel tells of the control group is the same for all, however many ask.
    assert {rule(f"inferd_{name}") for name in ("cpu_throttled_seconds", "pressure_stalled_seconds")} == {"max"}
    assert rule("process_cpu_seconds") == rule("python_gc_collections") == "sum"
