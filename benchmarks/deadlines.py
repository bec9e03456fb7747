"""Measures how much the daemon answers in time under overload, when clients have deadlines.

    python -m benchmarks.deadlines --out build/bench
    python -m benchmarks.deadlines --before ../older-checkout --out build/bench

Every round runs every scenario once and, with ``--before``, once more on that checkout right after. A closed loop finds
the capacity at the start of each round. Figures are medians over the rounds, as fractions of the round's capacity:

- ``deadline``: a model of 15 to 20 ms on one core, deadlines of 200 ms. At least 0.95 in time at 1.5, 2 and 4 times
  the capacity, 0.85 at 8 times, and below the capacity all that is offered;
- ``all cores``: the same on all cores of two, where refused calls and the client take CPU from the runs. No bar;
- ``mixed``: half of the clients with 50 ms, half with 500 ms, at 3 times. Each gets at least 0.8 of its half;
- ``objective``: the model on two cores with an objective of 250 ms and no deadlines, at 2 and 5 times. No less than
  ``--before``;
- ``work``: a model of some milliseconds that is served alone, deadlines of 150 ms. At least 0.9 in time at 1.5 and 2
  times the capacity, 0.85 at 4 times, 0.75 at 8 times. That is thousands of calls a second, whose client takes its part
  of the same cores;
- ``work, shared``: the same next to the other models, whose calls can't be told apart before they are read. No bar.

Prints the figures, writes deadlines.json and deadlines.png to ``--out``, and exits with 1 when a bar is missed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from tests import models
from tests.system.daemon import Daemon

from benchmarks import plot_deadlines
from benchmarks.closed_loop import capacity
from benchmarks.overload import products, request_for
from inferd.engine.runtime import ov

_op = ov.opset13

ROOT = Path(__file__).resolve().parents[1]
_ONE = "[execution]\nstreams = 1\nthreads = 1\n"
_TWO = "[execution]\nstreams = 2\nthreads = 2\n"
_OBJECTIVE = 0.25


@dataclass(frozen=True, slots=True)
class Clients:
    """A part of the load with this deadline in ms; None is without."""

    part: float
    deadline: int | None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A ``model`` at ``load`` times its capacity; a response within ``within`` ms is in time. ``bar`` holds for each of
    the clients, as a fraction of the most that they can get. The daemon serves the models of ``repository``."""

    name: str
    model: str
    load: float
    clients: tuple[Clients, ...]
    within: int
    bar: float | None
    repository: str = "models"


@dataclass(frozen=True, slots=True)
class Result:
    """Per second: the round's ``capacity``, and for each of the clients the requests offered and the responses in time.
    ``part`` is the lowest fraction over the clients: responses in time over the most that they can get, which is what
    they offered or their part of the capacity."""

    scenario: str
    load: float
    which: str
    capacity: float
    offered: list[float]
    in_time: list[float]
    part: float


def _deadline(load: float, bar: float) -> Scenario:
    return Scenario("deadline", "some", load, (Clients(1.0, 200),), 200, bar)


SCENARIOS = (
    _deadline(0.5, 0.99),
    _deadline(1.5, 0.95),
    _deadline(2, 0.95),
    _deadline(4, 0.95),
    _deadline(8, 0.85),
    Scenario("mixed", "some", 3, (Clients(0.5, 50), Clients(0.5, 500)), 500, 0.8),
    Scenario("all cores", "two", 2, (Clients(1.0, 200),), 200, None),
    Scenario("all cores", "two", 4, (Clients(1.0, 200),), 200, None),
    Scenario("all cores", "two", 8, (Clients(1.0, 200),), 200, None),
    Scenario("objective", "two-objective", 2, (Clients(1.0, None),), 250, None),
    Scenario("objective", "two-objective", 5, (Clients(1.0, None),), 250, None),
    Scenario("work, shared", "work", 2, (Clients(1.0, 150),), 150, None),
    Scenario("work, shared", "work", 4, (Clients(1.0, 150),), 150, None),
    *(
        Scenario("work", "work", load, (Clients(1.0, 150),), 150, bar, "alone")
        for load, bar in ((1.5, 0.9), (2, 0.9), (4, 0.85), (8, 0.75))
    ),
)


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    checkouts = {"now": ROOT} | ({"before": options.before.resolve()} if options.before else {})
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        folder = Path(scratch)
        _make_repository(folder / "models", options.products)
        models.save(work(), folder / "alone", "work", settings=_TWO)
        for number in range(options.rounds):
            # The order alternates, so that a warmer or cooler machine affects both alike.
            order = list(checkouts) if number % 2 == 0 else list(reversed(checkouts))
            results += _round(number, folder, {which: checkouts[which] for which in order}, options)
    rows = _medians(results)
    misses = [
        f"{row['scenario']} at {row['load']:g}x: {row['part']:.2f}, below {row['bar']:.2f}"
        for row in rows
        if row["which"] == "now" and row["bar"] is not None and row["part"] < row["bar"]
    ]
    report = {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "rows": rows,
        "results": [asdict(result) for result in results],
        "missed": misses,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "deadlines.json").write_text(json.dumps(report, indent=2) + "\n")
    plot_deadlines.draw(report, options.out / "deadlines.png")
    _print(rows)
    for miss in misses:
        print(f"MISSED: {miss}")
    return 1 if misses else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deadlines", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each run")
    parser.add_argument("--products", type=int, default=8, help="matrix products of the model of 15 to 20 ms")
    parser.add_argument("--before", type=Path, help="another checkout, to be measured next to this one")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    parser.add_argument("--only", help="scenarios whose name contains this")
    return parser.parse_args()


def work(width: int = 640, depth: int = 40) -> "ov.Model":
    """``x`` -> ``y``, FP32 [8, ``width``], by ``depth`` products with one matrix: some milliseconds, 20 KB."""
    x = _op.parameter([8, width], ov.Type.f32)
    x.output(0).set_names({"x"})
    value, mean = x, _op.constant((np.eye(width) * 0.99).astype(np.float32))
    for _ in range(depth):
        value = _op.matmul(value, mean, False, False)
    value.output(0).set_names({"y"})
    return ov.Model([_op.result(value)], [x], "work")


def _make_repository(root: Path, count: int) -> None:
    models.save(products(count), root, "some", settings=_ONE)
    models.save(products(count), root, "two", settings=_TWO)
    models.save(products(count), root, "two-objective", settings=f"{_TWO}[objective]\nlatency_slo = {_OBJECTIVE}\n")
    models.save(work(), root, "work", settings=_TWO)


def _round(number: int, folder: Path, checkouts: Mapping[str, Path], options: argparse.Namespace) -> list[Result]:
    wanted = [scenario for scenario in SCENARIOS if not options.only or options.only in scenario.name]
    results = []
    for repository in dict.fromkeys(scenario.repository for scenario in wanted):
        own = [scenario for scenario in wanted if scenario.repository == repository]
        results += _with(folder / repository, own, number, checkouts, options)
    return results


def _with(
    repository: Path,
    scenarios: Sequence[Scenario],
    number: int,
    checkouts: Mapping[str, Path],
    options: argparse.Namespace,
) -> list[Result]:
    """The ``scenarios`` of one round, on daemons that serve ``repository``."""
    results = []
    with _daemons(repository, checkouts) as daemons:
        rates: dict[tuple[str, str], float] = {}
        for scenario in scenarios:
            for which, daemon in daemons.items():
                plain = scenario.model.removesuffix("-objective")
                if (which, plain) not in rates:
                    request = request_for(daemon.grpc, plain)
                    rates[which, plain] = uvloop.run(capacity(daemon.grpc, request, 4, 3.0))
                most = statistics.fmean(rate for (_, model), rate in rates.items() if model == plain)
                results.append(_measure(scenario, which, daemon.grpc, most, number, options.seconds))
                shown = ", ".join(f"{rate:.1f}" for rate in results[-1].in_time)
                print(
                    f"round {number + 1}, {scenario.name} at {scenario.load:g}x, {which}: {shown} in time/s, "
                    f"{results[-1].part:.2f} of what can be had; capacity {most:.0f}/s",
                    flush=True,
                )
    return results


@contextmanager
def _daemons(repository: Path, checkouts: Mapping[str, Path]) -> Iterator[dict[str, Daemon]]:
    running: dict[str, Daemon] = {}
    try:
        for which, checkout in checkouts.items():
            environment = {"PYTHONPATH": str(checkout / "daemon")}
            flags = ("--cache-dir", str(repository.parent / f"cache-{which}"))
            running[which] = Daemon(repository, *flags, environment=environment)
        for daemon in running.values():
            daemon.wait_for("ready")
        yield running
    finally:
        for daemon in running.values():
            daemon.stop()


def _measure(scenario: Scenario, which: str, address: str, most: float, seed: int, seconds: float) -> Result:
    """All clients of ``scenario`` at once, each a process of its own: `inferd bench`."""
    running: list[tuple[Clients, float, subprocess.Popen[bytes], Path]] = []
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        for index, clients in enumerate(scenario.clients):
            rate, file = scenario.load * most * clients.part, Path(scratch) / f"{index}.json"
            within = clients.deadline or scenario.within
            command = [sys.executable, "-m", "inferd", "bench", "run", scenario.model, "--server", address]
            command += ["--rate", f"{rate:.1f}", "--seconds", f"{seconds:g}s", "--warm-up", "3s"]
            command += ["--objective", f"{within}ms", "--seed", str(seed), "--json", str(file)]
            command += ["--deadline", f"{clients.deadline}ms"] if clients.deadline else []
            environment = os.environ | {"PYTHONPATH": str(ROOT / "daemon")}
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            running.append((clients, rate, process, file))
        in_time, parts = [], []
        for clients, _, process, file in running:
            process.wait()
            # `inferd bench` exits with 1 when some responses were late: its output says how many.
            (step,) = json.loads(file.read_text())["steps"]
            in_time.append(float(step["goodput"]))
            # Below the capacity, the random load that was offered.
            below = scenario.load < 1
            parts.append(step["share_in_time"] if below else step["goodput"] / (most * clients.part))
    offered = [rate for _, rate, _, _ in running]
    return Result(scenario.name, scenario.load, which, most, offered, in_time, min(parts))


def _medians(results: list[Result]) -> list[dict[str, Any]]:
    rows = []
    for scenario in SCENARIOS:
        for which in ("now", "before"):
            own = [r for r in results if (r.scenario, r.load, r.which) == (scenario.name, scenario.load, which)]
            if own:
                parts = [r.part for r in own]
                rows.append(
                    {
                        "scenario": scenario.name,
                        "load": scenario.load,
                        "which": which,
                        "bar": scenario.bar,
                        "capacity": statistics.median(r.capacity for r in own),
                        "in_time": [
                            statistics.median(values) for values in zip(*(r.in_time for r in own), strict=True)
                        ],
                        "part": statistics.median(parts),
                        "least": min(parts),
                        "most": max(parts),
                    }
                )
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    print("\nscenario      load  which   capacity/s  in time/s        of what can be had (least to most)  bar")
    for row in rows:
        in_time = " + ".join(f"{rate:.1f}" for rate in row["in_time"])
        bar = "-" if row["bar"] is None else f"{row['bar']:.2f}"
        print(
            f"{row['scenario']:12}  {row['load']:3g}x  {row['which']:6}  {row['capacity']:10.1f}  {in_time:15}"
            f"  {row['part']:.2f} ({row['least']:.2f} to {row['most']:.2f})  {bar:>17}"
        )


if __name__ == "__main__":
    sys.exit(main())
