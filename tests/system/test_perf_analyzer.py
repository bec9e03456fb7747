"""Triton's load generator perf_analyzer measures the daemon unchanged, and its report holds the server's own times."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from inferd.demo.magika import MODEL
from tests.system import clients
from tests.system.daemon import Daemon

pytestmark = pytest.mark.system

# Few requests a window and any deviation between windows accepted: the figures themselves don't matter here.
SHORT = ["--measurement-mode", "count_windows", "--measurement-request-count", "50", "--max-trials", "3"]
SHORT += ["--stability-percentage", "999"]

SERVER = re.compile(
    r"Server:\s+"
    r"Inference count: (?P<inferences>\d+)\s+"
    r"Execution count: (?P<executions>\d+)\s+"
    r"Successful request count: (?P<successes>\d+)\s+"
    r"Avg request latency: (?P<total>\d+) usec \(overhead \d+ usec \+ queue (?P<queue>\d+) usec \+ "
    r"compute input (?P<input>\d+) usec \+ compute infer (?P<infer>\d+) usec \+ compute output (?P<output>\d+) usec\)"
)


@pytest.mark.parametrize("mode", [[], ["--async", "--streaming"]], ids=["unary", "streaming"])
@pytest.mark.parametrize("concurrency", [1, 8, 32])
def test_it_reports_what_client_and_server_saw(
    demo_server: Daemon, tmp_path: Path, concurrency: int, mode: list[str], figure: Callable[[str], None]
) -> None:
    table = tmp_path / "report.csv"
    load = ["--concurrency-range", str(concurrency), *mode, *SHORT, "-f", str(table)]

    done = clients.perf_analyzer("-m", MODEL, "-i", "grpc", "-u", demo_server.grpc, *load)

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    found = SERVER.search(done.stdout)
    assert found, done.stdout
    seen = {name: int(number) for name, number in found.groupdict().items()}
    assert seen["inferences"] == seen["successes"] >= 50
    assert 0 < seen["executions"] <= seen["inferences"]
    assert seen["total"] >= sum(seen[stage] for stage in ("queue", "input", "infer", "output"))
    assert seen["infer"] > 0
    with table.open() as report:
        [row] = csv.DictReader(report)
    assert int(row["Concurrency"]) == concurrency
    assert float(row["Inferences/Second"]) > 0
    kind, rate = "streaming" if mode else "unary", float(row["Inferences/Second"])
    figure(f"perf_analyzer: {kind} at {concurrency}: {seen['inferences']} inferences, {rate:.0f} a second")
    stages = {"queue": "Queue", "input": "Compute Input", "infer": "Compute Infer", "output": "Compute Output"}
    assert {stage: int(row[f"Server {name}"]) for stage, name in stages.items()} == {s: seen[s] for s in stages}
