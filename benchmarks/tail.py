"""Compares the tail of the latency between servers, below saturation.

    python -m benchmarks.tail --rounds 5 --out build/bench

Starts inferd and its peers as `benchmarks.peers` does. All get the same requests at the same times, as a Poisson
process at 0.7 of what the slowest of them answers in a closed loop of eight, one server after the other in each round.
Latency counts from when a request was due. Prints medians with least and most of the rounds' percentiles and of
inferd's p99 relative to each other server's, and writes tail.json.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from tests.conftest import ROOT

from benchmarks import open_loop
from benchmarks.peers import clients, workloads
from benchmarks.peers.results import INFERD, LOAD
from benchmarks.peers.rounds import Rounds
from benchmarks.peers.servers import KINDS, Budget, Running, model_settings
from benchmarks.peers.workloads import Workload

SHARE = 0.7
SETTLE = 0.5
"""Seconds at the start of a run that do not count."""


@dataclass(frozen=True, slots=True)
class Look:
    """One server for some seconds: requests a second that were due, and percentiles of the latency in ms."""

    rate: float
    p50: float
    p99: float
    late_client_p99: float


Looks = dict[str, dict[str, list[Look]]]
"""By model and server."""


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    budget = Budget(options.threads, options.environments.resolve(), (), lambda line: print(line, file=sys.stderr))
    looks: Looks = {}
    with (
        tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch,
        # One loop for all: gRPC keeps the first it met.
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop,
        ExitStack() as stack,
    ):
        settings = lambda name: model_settings(name, options.threads)  # noqa: E731
        made = workloads.make(options.models, Path(scratch) / "models", settings)
        rounds = Rounds(loop, budget, made, budget.report)
        rounds.start([kind for kind in KINDS if kind.name in options.only], stack)
        for workload in made:
            servers = [running for running in rounds.started if workload.name in running.targets]
            rate = options.share * min(loop.run(_capacity(running, workload)) for running in servers)
            for number in range(options.rounds):
                for running in servers if number % 2 else reversed(servers):
                    look = loop.run(_look(running, workload, rate, options.seconds, number))
                    looks.setdefault(workload.name, {}).setdefault(running.kind.name, []).append(look)
                print(f"{workload.name}: round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    _print(looks)
    options.out.mkdir(parents=True, exist_ok=True)
    report = {model: {name: [asdict(look) for look in own] for name, own in of.items()} for model, of in looks.items()}
    (options.out / "tail.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tail", description=(__doc__ or "").split("\n")[0])
    names = f"{INFERD},triton"
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each run")
    parser.add_argument("--share", type=float, default=SHARE, help="of what the slowest server answers")
    parser.add_argument("--only", type=lambda text: text.split(","), default=names.split(","), help=f"servers: {names}")
    parser.add_argument("--models", type=lambda text: text.split(","), default=["noop", "squeezenet"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="each server's; and streams")
    parser.add_argument(
        "--environments", type=Path, default=ROOT / "build/bench/peers", help="where peers are installed"
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    return parser.parse_args()


async def _capacity(running: Running, workload: Workload) -> float:
    """Responses a second of a closed loop."""
    async with running.kind.ways[0].lanes(running.targets[workload.name], workload, LOAD) as lanes:
        return (await clients.closed_loop(lanes, 0.5, 2.0 * workload.pace, lambda: None)).rate


async def _look(running: Running, workload: Workload, rate: float, seconds: float, seed: int) -> Look:
    target = running.targets[workload.name]
    outcomes = await open_loop.poisson(target, workload.request, rate, SETTLE + seconds, seed)
    figures = open_loop.Figures.of([outcomes], SETTLE, seconds, 1.0)
    assert figures.failed == figures.unanswered == figures.refused == 0, figures
    assert figures.p50 is not None
    assert figures.p99 is not None
    return Look(figures.offered, figures.p50 * 1e3, figures.p99 * 1e3, (figures.lag_p99 or 0.0) * 1e3)


def _print(looks: Looks) -> None:
    print("| model | server | requests/s | p50 ms | p99 ms | inferd's p99 to it | client's own lateness, p99 ms |")
    print("|---|---|---|---|---|---|---|")
    for model, of in looks.items():
        for name, own in of.items():
            ratios = [mine.p99 / look.p99 for mine, look in zip(of[INFERD], own, strict=True)]
            print(
                f"| {model} | {name} | {statistics.median(look.rate for look in own):.0f} "
                f"| {_spread([look.p50 for look in own])} | {_spread([look.p99 for look in own])} "
                f"| {_spread(ratios)} | {statistics.median(look.late_client_p99 for look in own):.2f} |"
            )


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    sys.exit(main())
