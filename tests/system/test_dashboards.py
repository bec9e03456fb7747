"""Every query of every dashboard gives something to draw: a real Prometheus scrapes the real daemon under load."""

import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from grafana.source import rules, slo

from tests.grafana.boards import (
    BOARDS,
    Query,
    annotations,
    expanded,
    selectors,
    targets,
    variable_query,
    variables,
)
from tests.system import mixed_load
from tests.system.daemon import Daemon
from tests.system.prometheus import Prometheus, Sample, needs

pytestmark = [pytest.mark.system, needs("prometheus")]

# The objectives' windows in seconds, so that a short run fills them all.
TIMES = replace(
    slo.TIMES,
    windows={"5m": 3, "30m": 4, "1h": 5, "2h": 6, "6h": 8, "1d": 10, "3d": 12},
    period=12,
    evaluation=1,
    slow_evaluation=1,
)
PATIENCE = 90.0
"""Seconds from the first query on until each must have had its sample; the last comes after some ten."""

# As Grafana puts them in: everything is selected, and a rate looks back over four scrapes.
VALUES = {"job": ".+", "instance": ".+", "model": ".+", "__rate_interval": "4s"}


@dataclass(frozen=True, slots=True)
class Excuse:
    """Why a query has nothing to draw here, and the query that says so by being empty."""

    why: str
    unless: str


EXCUSES = {
    "host: Throttled by the CPU quota A": Excuse("needs a CPU quota", "inferd_cpu_quota_periods_total > 0"),
    "host: Throttled by the CPU quota B": Excuse("needs a control group for CPU", "inferd_cpu_throttled_seconds_total"),
    "host: Pressure A": Excuse("needs a kernel that tells", "inferd_pressure_stalled_seconds_total"),
    "host: Resident memory B": Excuse("needs a memory limit", "inferd_memory_limit_bytes"),
    "host: Device memory A": Excuse("needs a GPU or an NPU", "inferd_device_memory_used_bytes"),
    "host: Device memory B": Excuse("needs a GPU or an NPU", "inferd_device_memory_bytes"),
    "host: Workers A": Excuse("needs several workers", "inferd_workers"),
    "host: Workers B": Excuse("needs several workers", "inferd_workers"),
    "host: Workers replaced A": Excuse("needs several workers", "inferd_workers"),
    "fleet: annotation Tuning": Excuse("nothing is tuned", "inferd_tuning_decisions_total > 0"),
    "model: annotation Tuning": Excuse("nothing is tuned", "inferd_tuning_decisions_total > 0"),
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    repository = mixed_load.write(tmp_path_factory.mktemp("repository"))
    with Daemon(repository, "--cache-dir", str(cache_dir), "--repository-control") as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


@pytest.fixture(scope="module")
def prometheus(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    paths = []
    for name, text in rules.files(TIMES).items():
        paths.append(folder / Path(name).name)
        # The other groups are evaluated more often as well.
        paths[-1].write_text(re.sub(r"(?m)^  interval: .*$", "  interval: 1s", text))
    load = subprocess.Popen([sys.executable, "-m", "tests.system.mixed_load", daemon.grpc])
    try:
        with Prometheus(folder / "data", [daemon.metrics], rules=paths, exemplars=True) as prometheus:
            prometheus.wait_for_scrapes()
            yield prometheus
            assert load.poll() is None, "the load ended by itself"
    finally:
        load.kill()
        load.wait()


@pytest.fixture(scope="module")
def deadline(prometheus: Prometheus) -> float:
    assert prometheus.url
    return time.monotonic() + PATIENCE


def drawn(samples: list[Sample]) -> list[Sample]:
    """Those that Grafana draws: NaN and infinity leave a blank."""
    return [one for one in samples if math.isfinite(one["value"])]


def wait_for_another_scrape(prometheus: Prometheus) -> None:
    [last] = prometheus.query("timestamp(up)")
    prometheus.wait_for("timestamp(up)", lambda found: bool(found) and found[0]["value"] > last["value"])


def models(prometheus: Prometheus, board: str) -> list[str]:
    """What the dashboard's variable model may be: all at once, or one of the models."""
    several = [variable["name"] for variable in variables(board) if variable.get("multi")]
    if board == "host" or "model" in several:
        return [".+"]
    return sorted({one["metric"]["model"] for one in prometheus.query("inferd_model_ready")})


def asked(prometheus: Prometheus, query: Query) -> list[Sample]:
    """What can be drawn of a query, of the first model that has something."""
    for model in models(prometheus, query.board):
        if found := drawn(prometheus.query(expanded(query.expr, VALUES | {"model": model}))):
            return found
    return []


@pytest.mark.parametrize("query", [*targets(), *annotations()], ids=str)
def test_there_is_something_to_draw(prometheus: Prometheus, deadline: float, query: Query) -> None:
    excuse = EXCUSES.get(str(query))
    if excuse is not None and not prometheus.query(excuse.unless):
        assert asked(prometheus, query) == [], f"no excuse: {excuse.why}"
        return
    while not asked(prometheus, query):
        assert time.monotonic() < deadline, f"nothing comes of {query.expr}"
        wait_for_another_scrape(prometheus)


def test_excuses_are_for_queries_that_there_are() -> None:
    assert EXCUSES.keys() <= {str(query) for query in (*targets(), *annotations())}


@pytest.mark.parametrize("query", list(targets()), ids=str)
def test_each_line_is_named_by_labels_that_it_has(prometheus: Prometheus, query: Query) -> None:
    wanted = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
    for sample in asked(prometheus, query):
        assert wanted <= sample["metric"].keys(), f"{query.legend} of {sample['metric']}"


@pytest.mark.parametrize(("board", "name"), [(b, v["name"]) for b in BOARDS for v in variables(b)])
def test_each_variable_has_values(prometheus: Prometheus, board: str, name: str) -> None:
    [variable] = [one for one in variables(board) if one["name"] == name]
    selector, label = variable_query(variable)
    found = prometheus.query(f"group by ({label}) ({expanded(selector, VALUES)})")
    assert [one["metric"].get(label) for one in found].count(None) == 0
    assert found


def test_an_exemplar_leads_to_its_trace(prometheus: Prometheus) -> None:
    [query] = [one for one in targets() if str(one) == "model: Duration C"]
    [histogram] = [selector for selector in selectors(query.expr) if selector.name.endswith("_bucket")]
    traces = [
        example["labels"].get("trace_id")
        for series in prometheus.exemplars(histogram.name)
        for example in series["exemplars"]
    ]
    assert traces
    assert None not in traces
