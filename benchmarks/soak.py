"""Runs a mixed load for half an hour: no good request may fail, and nothing may grow.

    python -m benchmarks.soak --minutes 30 --out build/bench

A mixed load (good, malformed, cancelled, expired and shed requests, unary, over streams and in sequences) and random
arrivals of good requests run together, while Prometheus scrapes, the daemon reloads, and a model is loaded and
unloaded. Bars:

- none of the good requests fails;
- resident memory in the last fifth is at most 5 % above the second fifth;
- threads and open files are at their fewest at most those of the second fifth at their fewest, and a few: what a model
  opens while it loads is closed again, and what leaks is not.

Prints the figures, with p99.9 of the good requests, which has no bar. Writes soak.json to ``--out`` and exits with 1
when a bar is missed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np
import uvloop
from tests.system import mixed_load
from tests.system.daemon import Daemon

from benchmarks.open_loop import Outcome, poisson, quantile
from benchmarks.reloading import CYCLED, SWAPPED, Operator, put, request

GROWTH_BAR = 0.05
FEW = 4
CHUNK = 10.0
SCRAPE = {"Accept": "application/openmetrics-text;version=1.0.0", "Accept-Encoding": "gzip"}


@dataclass(frozen=True, slots=True)
class Reading:
    """The daemon's resources ``at`` seconds into the soak."""

    at: float
    resident: int
    threads: int
    files: int

    @classmethod
    def of(cls, pid: int, at: float) -> "Reading":
        folder = Path("/proc", str(pid))
        pages = int((folder / "statm").read_text().split()[1])
        return cls(at, pages * 4096, len(list((folder / "task").iterdir())), len(list((folder / "fd").iterdir())))


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    seconds = options.minutes * 60
    readings: list[Reading] = []
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        repository = mixed_load.write(Path(scratch) / "models")
        put(repository, SWAPPED, 1)
        flags = ("--cache-dir", f"{scratch}/cache", "--repository-control")
        with Daemon(repository, *flags) as daemon:
            operator = Operator(daemon)
            over = threading.Event()
            operations = threading.Thread(target=_operate, args=(daemon, operator, repository, over))
            noise = subprocess.Popen([sys.executable, "-m", "tests.system.mixed_load", daemon.grpc])
            operations.start()
            begun = time.monotonic()
            try:
                while (at := time.monotonic() - begun) < seconds:
                    outcomes += uvloop.run(poisson(daemon.grpc, request(SWAPPED), options.rate, CHUNK, len(outcomes)))
                    readings.append(Reading.of(daemon.process.pid, at))
                    now = readings[-1]
                    print(
                        f"{at / 60:5.1f} min  {len(outcomes)} good requests  {now.resident / 2**20:.0f} MiB  "
                        f"{now.threads} threads  {now.files} files",
                        flush=True,
                    )
            finally:
                over.set()
                operations.join()
                noise.kill()
                noise.wait()
            tracebacks = [line for line in daemon.lines if '"exception"' in line]
    missed = _missed(outcomes, readings, tracebacks, options.growth)
    latencies = [o.latency / 1e9 for o in outcomes if o.code == "OK"]
    quantiles = {f"p{q * 100:g}": quantile(latencies, q) for q in (0.5, 0.99, 0.999)}
    print(", ".join(f"{name} {(value or 0) * 1000:.1f} ms" for name, value in quantiles.items()))
    report = {
        "quantiles": quantiles,
        "good": len(outcomes),
        "readings": [asdict(r) for r in readings],
        "missed": missed,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.json").write_text(json.dumps(report, indent=2) + "\n")
    for miss in missed:
        print(f"MISSED: {miss}")
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=20.0, help="good requests a second, random arrivals")
    parser.add_argument("--growth", type=float, default=GROWTH_BAR, help="part by which memory may grow")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    return parser.parse_args()


def _operate(daemon: Daemon, operator: Operator, repository: Path, over: threading.Event) -> None:
    """Scrape every second, and swap, load and unload a model every twenty."""
    turn = 0
    while not over.wait(1.0):
        turn += 1
        daemon.get("/metrics")
        daemon.get("/status.json")
        if turn % 20 == 0:
            put(repository, SWAPPED, turn)
            put(repository, CYCLED, turn)
            operator.reload()
            if operator.call("RepositoryModelLoad", CYCLED) is grpc.StatusCode.OK:
                operator.call("RepositoryModelUnload", CYCLED)


def _missed(outcomes: list[Outcome], readings: list[Reading], tracebacks: list[str], growth: float) -> list[str]:
    failed = Counter(outcome.code for outcome in outcomes if outcome.code != "OK")
    fifth = max(1, len(readings) // 5)
    early, late = readings[fifth : 2 * fifth] or readings[:1], readings[-fifth:]
    memory = float(np.median([r.resident for r in late])) / float(np.median([r.resident for r in early])) - 1
    print(f"memory {memory:+.1%} from the second fifth to the last")
    grown = {
        name: min(getattr(r, name) for r in late) - min(getattr(r, name) for r in early)
        for name in ("threads", "files")
    }
    return [
        *([f"good requests failed: {dict(failed)}"] if failed else []),
        *([f"memory grew by {memory:+.1%}"] if memory > growth else []),
        *(f"{number} more {name} than early on" for name, number in grown.items() if number > FEW),
        *([f"{len(tracebacks)} tracebacks in the log, such as {tracebacks[0]}"] if tracebacks else []),
    ]


if __name__ == "__main__":
    sys.exit(main())
