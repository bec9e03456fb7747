"""The command: starts the servers, measures, and writes peers.json and, with ``--write``, docs/performance.md."""

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvloop
from tests.conftest import ROOT

from benchmarks.peers import plot, report, workloads
from benchmarks.peers.results import BENCHMARK_APP, Result, Results, bars
from benchmarks.peers.rounds import Plan, Rounds
from benchmarks.peers.servers import KINDS, Budget, model_settings

PAGE, PICTURE = ROOT / "docs" / "performance.md", ROOT / "docs" / "images" / "peers.png"


def main() -> int:
    """The exit status: 1 when a promise is not kept."""
    options = _options()
    # However this process ends, it resumes and ends the servers first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "peers.json"
    run = json.loads(file.read_text()) if options.again else _measure(options)
    file.write_text(json.dumps(run, indent=1) + "\n")
    results = Results([Result(**result) for result in run["results"]])
    text = report.markdown(results, run)
    (options.out / "peers.md").write_text(text)
    plot.draw(results, options.out / "peers.png")
    if options.write:
        PAGE.write_text(report.between_marks(PAGE.read_text(), text))
        plot.draw(results, PICTURE)
    print(f"\n{text}")
    missed = [bar for bar in bars(results) if bar.met is False]
    for bar in missed:
        print(
            f"MISSED: {bar.text}: {report.spread(bar.figure)}, {'at least' if bar.floor else 'at most'} {bar.limit:g}"
        )
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description="Compares inferd with other servers, benchmark_app and two echoes",
    )
    names = [kind.name for kind in KINDS] + [BENCHMARK_APP]
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each closed loop")
    parser.add_argument("--warm-up", type=float, default=0.4, help="seconds of the same load before each")
    parser.add_argument("--only", type=_list_of(names), default=names, help=f"servers, of {','.join(names)}")
    models = list(workloads.SOURCES)
    parser.add_argument("--models", type=_list_of(models), default=models, help=f"models, of {','.join(models)}")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="each server's; and streams")
    parser.add_argument("--inferd-flags", type=str.split, default=[], help="further flags of inferd serve, in one word")
    parser.add_argument(
        "--environments", type=Path, default=ROOT / "build/bench/peers", help="where peers are installed"
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    parser.add_argument("--write", action="store_true", help="also write docs/performance.md and its picture")
    parser.add_argument("--again", action="store_true", help="measure nothing: write the reports again from peers.json")
    return parser.parse_args()


def _list_of(allowed: list[str]) -> Any:
    def names(text: str) -> list[str]:
        found = text.split(",")
        if unknown := [name for name in found if name not in allowed]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {','.join(allowed)}")
        return found

    return names


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    def say(line: str) -> None:
        print(line, flush=True)

    budget = Budget(options.threads, options.environments.resolve(), tuple(options.inferd_flags), say)
    with (
        tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch,
        # One loop for all: gRPC keeps the first it met.
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop,
        ExitStack() as stack,
    ):
        made = workloads.make(
            options.models, Path(scratch) / "models", lambda name: model_settings(name, options.threads)
        )
        rounds = Rounds(loop, budget, made, say)
        kinds = [kind for kind in KINDS if kind.name in options.only]
        rounds.start(kinds, stack)
        plan = Plan(options.rounds, options.seconds, options.warm_up, BENCHMARK_APP in options.only)
        results = rounds.measure(plan)
        sizes = {w.name: {"request": len(w.request), "answer": w.answer.nbytes} for w in made}
    return {
        "measured": datetime.now(UTC).date().isoformat(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "threads": options.threads,
        "inferd_flags": options.inferd_flags,
        "versions": {kind.title: kind.version for kind in kinds if kind.version}
        | {"OpenVINO": version("openvino"), "grpcio": version("grpcio"), "Python": sys.version.split()[0]},
        "configurations": rounds.configurations,
        "missing": rounds.missing,
        "sizes": sizes,
        "results": [asdict(result) for result in results],
    }


if __name__ == "__main__":
    sys.exit(main())
