"""Measures the latency that clients see while the daemon changes a model's configuration under load.

    python -m benchmarks.swap --out build/bench

A daemon serves a model under an objective, with random arrivals at ``--load`` of the model's capacity throughout. Each
round takes p99 before, while other settings roll out as a tuning's choice does (loaded next to the current version,
compared, given a growing share, promoted), and after; the next round changes them back. Bars, over all rounds:

- no request fails;
- p99 of the requests that were due during a swap is at most 1.5 times p99 before it.

Last, without a bar, p99 while the niced process of a tuning measures under the load. Prints the figures, writes
swap.json to ``--out`` and exits with 1 when a bar is missed.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from tests import models
from tests.system.daemon import Daemon

from benchmarks.closed_loop import capacity
from benchmarks.open_loop import Outcome, poisson, quantile
from benchmarks.overload import products, request_for
from inferd._pb import tuner_pb2 as pb
from inferd.rpc.tuner_client import TunerClient

MODEL = "products"
P99_BAR = 1.5
QUIET = 6.0
"""Seconds before and after each swap."""
LONGEST = 30.0
"""Seconds the load goes on at most in a round; what is due after the end of a round is not counted."""
SETTINGS = (
    pb.Settings(streams=1, threads=2, requests=2, choices={"pinning": "on"}),
    pb.Settings(streams=2, threads=2, requests=2, choices={"pinning": "on"}),
)


@dataclass(frozen=True, slots=True)
class Phase:
    """Requests due in one phase of all rounds: their number, failures by code, quantiles in seconds."""

    count: int
    failed: dict[str, int]
    p50: float
    p99: float

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> "Phase":
        due = list(outcomes)
        latencies = [o.latency / 1e9 for o in due if o.code == "OK"]
        p50, p99 = quantile(latencies, 0.5), quantile(latencies, 0.99)
        if p50 is None or p99 is None:
            raise SystemExit("nothing was answered in a phase; take longer ones or more load")
        failed = Counter(o.code for o in due if o.code != "OK")
        return cls(len(due), dict(failed), p50, p99)

    def __str__(self) -> str:
        p50, p99 = self.p50 * 1000, self.p99 * 1000
        failed = ", ".join(f"{n} {code}" for code, n in self.failed.items()) or "none failed"
        return f"{self.count:6} requests, {failed}, p50 {p50:6.1f} ms, p99 {p99:6.1f} ms"


@dataclass(frozen=True, slots=True)
class Round:
    """The load's outcomes, and from when to when other work went on, in nanoseconds of the load's clock."""

    outcomes: list[Outcome]
    began: int
    ended: int
    over: int

    def due(self, start: float, end: float) -> list[Outcome]:
        return [o for o in self.outcomes if start <= o.intended < end]

    @property
    def before(self) -> list[Outcome]:
        return self.due(1e9, self.began)

    @property
    def during(self) -> list[Outcome]:
        return self.due(self.began, self.ended)

    @property
    def after(self) -> list[Outcome]:
        return self.due(self.ended, self.over)


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        folder = Path(scratch)
        settings = (
            f"[execution]\nstreams = 2\nthreads = 2\ninfer_requests = 2\n[objective]\nlatency_slo = {options.slo}\n"
        )
        models.save(products(options.products), folder / "models", MODEL, settings=settings)
        flags = ["--cache-dir", f"{folder}/cache", "--profile-dir", f"{folder}/profiles", "--tuner-control"]
        # Tuning is on and has a profile for these settings, so that it searches only on request.
        with Daemon(folder / "models", *flags, "--tuning", "start", "--tuning-budget", "8") as daemon:
            ended = daemon.wait_for("tuned", timeout=300)
            print(f"tuned at the start: {ended['decision']}", flush=True)
            request = request_for(daemon.grpc, MODEL)
            rate = options.load * uvloop.run(capacity(daemon.grpc, request, 2, options.seconds / 2))
            print(f"{rate:.1f} random arrivals a second, {options.load:.0%} of the capacity", flush=True)
            with TunerClient(daemon.grpc) as tuner:
                rounds = [_swap(tuner, daemon, request, rate, number) for number in range(options.rounds)]
                tuning = _under_load(daemon, request, rate, options.rounds, lambda: _tune(tuner, daemon))
    before, during, after = (
        Phase.of(o for r in rounds for o in part(r))
        for part in (lambda r: r.before, lambda r: r.during, lambda r: r.after)
    )
    tuned = Phase.of(tuning.during)
    ratio = during.p99 / before.p99
    print(f"\nbefore a swap        {before}\nduring               {during}\nafter                {after}")
    print(f"ratio of p99         {ratio:.2f} (bar {P99_BAR})")
    print(f"while tuning measures {tuned}: {tuned.p99 / before.p99:.2f} times p99 before (no bar)")
    missed = [
        *([f"requests failed: {phase.failed}" for phase in (before, during, after, tuned) if phase.failed]),
        *([f"p99 during a swap is {ratio:.2f} times p99 before it, above {P99_BAR}"] if ratio > P99_BAR else []),
    ]
    report = {"rate": rate, "rounds": options.rounds, "ratio": ratio, "missed": missed}
    report |= {
        name: asdict(p) for name, p in (("before", before), ("during", during), ("after", after), ("tuning", tuned))
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "swap.json").write_text(json.dumps(report, indent=2) + "\n")
    for miss in missed:
        print(f"MISSED: {miss}")
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swap", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=6, help="swaps, there and back in turn")
    parser.add_argument("--load", type=float, default=0.5, help="of what the model can do")
    parser.add_argument("--products", type=int, default=2, help="matrix products in the model: what a run costs")
    parser.add_argument("--slo", type=float, default=0.25, help="the objective: seconds a request may take")
    parser.add_argument("--seconds", type=float, default=6.0, help="of measuring the capacity")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    return parser.parse_args()


def _swap(tuner: TunerClient, daemon: Daemon, request: bytes, rate: float, number: int) -> Round:
    said = ""

    def change() -> None:
        nonlocal said
        said = tuner.pin(MODEL, settings=SETTINGS[number % 2])

    done = _under_load(daemon, request, rate, number, change)
    during = Phase.of(done.during)
    print(f"swap {number + 1}: {said}, in {(done.ended - done.began) / 1e9:.1f} s; {during}", flush=True)
    return done


def _tune(tuner: TunerClient, daemon: Daemon) -> None:
    """Start a search, and return once it has ended."""
    before = len(daemon.events("tuned"))
    tuner.pin(MODEL, pinned=False)
    tuner.tune(MODEL)
    given_up = time.monotonic() + LONGEST - 2 * QUIET
    while len(daemon.events("tuned")) == before and time.monotonic() < given_up:
        # This waits for another process, while the load goes on.
        time.sleep(0.2)


def _under_load(daemon: Daemon, request: bytes, rate: float, seed: int, work: Callable[[], None]) -> Round:
    """The load, with ``work`` going on between two quiet whiles."""

    async def run() -> Round:
        start = time.monotonic_ns()
        load = asyncio.create_task(poisson(daemon.grpc, request, rate, LONGEST, seed))
        await asyncio.sleep(QUIET)
        began = time.monotonic_ns() - start
        await asyncio.to_thread(work)
        ended = time.monotonic_ns() - start
        await asyncio.sleep(QUIET)
        over = time.monotonic_ns() - start
        return Round(await load, began, ended, over)

    return uvloop.run(run())


if __name__ == "__main__":
    sys.exit(main())
