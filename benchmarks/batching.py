"""Measures the throughput that dynamic batching gains, next to the gain that OpenVINO's benchmark_app predicts.

    python -m benchmarks.batching --out build/bench

One daemon serves the same weight-bound model twice: ``plain`` runs each request on its own, ``batched`` batches up to
``--max-size`` of them. All measurements take turns in rounds, so that other work on the machine affects all alike. The
best of each over the rounds are compared. Bars:

- throughput at ``--concurrency``: batched / plain is within 10 % of benchmark_app's prediction, rows a second at that
  batch size / rows a second at batch 1 (more is no miss);
- p50 of one request at a time: batched / plain is at most 1.05.

Prints both ratios, writes batching.json to ``--out`` and exits with 1 when a bar is missed.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.system import clients
from tests.system.daemon import Daemon

from benchmarks import weights_model

GAIN_BAR = 0.10
P50_BAR = 1.05
WINDOWS = 3
"""perf_analyzer measures at least this many windows and reports over all of them."""

_RUNS = re.compile(r"Inference count: (\d+)\s+Execution count: (\d+)")
_COUNT = re.compile(r"Count:\s+(\d+) iterations")
_DURATION = re.compile(r"Duration:\s+([\d.]+) ms")


@dataclass(frozen=True, slots=True)
class Load:
    """What perf_analyzer saw: requests a second, p50 in ms, and the server's rows a run."""

    rate: float
    p50: float
    rows: float


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of all measurements; those of benchmark_app are runs a second at batch 1 and at the full batch."""

    plain: Load
    batched: Load
    plain_alone: Load
    batched_alone: Load
    single_runs: float
    full_runs: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Of the best rounds: other work on the machine can only slow a measurement down. p50 in ms."""

    predicted_gain: float
    measured_gain: float
    gain_ratio: float
    plain_p50: float
    batched_p50: float
    p50_ratio: float

    @classmethod
    def of(cls, rounds: list[Round], max_size: int) -> "Summary":
        predicted = max_size * max(r.full_runs for r in rounds) / max(r.single_runs for r in rounds)
        measured = max(r.batched.rate for r in rounds) / max(r.plain.rate for r in rounds)
        plain, batched = min(r.plain_alone.p50 for r in rounds), min(r.batched_alone.p50 for r in rounds)
        return cls(predicted, measured, measured / predicted, plain, batched, batched / plain)

    def misses(self) -> list[str]:
        """The missed bars, in words."""
        found = []
        if self.gain_ratio < 1 - GAIN_BAR:
            found.append(f"the gain is {self.gain_ratio:.2f} of the predicted one, below {1 - GAIN_BAR:.2f}")
        if self.p50_ratio > P50_BAR:
            found.append(f"p50 of one request at a time is {self.p50_ratio:.3f} of plain's, above {P50_BAR}")
        return found


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        folder = Path(scratch)
        print(f"writing the model, widths {options.widths}", flush=True)
        file = _repository(folder / "models", options)
        print("starting the daemon", flush=True)
        with Daemon(folder / "models", "--cache-dir", str(folder / "cache")) as daemon:
            rounds = [_round(number, daemon, file, folder, options) for number in range(1, options.rounds + 1)]
    summary = Summary.of(rounds, options.max_size)
    misses = summary.misses()
    _print(rounds, summary, options)
    report = {"options": vars(options) | {"out": str(options.out)}, "rounds": [asdict(r) for r in rounds]}
    report |= {"summary": asdict(summary), "missed": misses}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "batching.json").write_text(json.dumps(report, indent=2) + "\n")
    for miss in misses:
        print(f"MISSED: {miss}")
    return 1 if misses else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batching", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each measurement is taken")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each measurement")
    parser.add_argument("--concurrency", type=int, default=16, help="requests in flight for throughput")
    parser.add_argument("--max-size", type=int, default=4, help="rows in a batch at most")
    parser.add_argument("--widths", type=int, nargs="+", default=[512, 8192, 8192, 8192, 512], help="of the MLP")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="CPU threads of the model")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of batching.json")
    return parser.parse_args()


def _repository(root: Path, options: argparse.Namespace) -> Path:
    """Both models in ``root``, compiled just as benchmark_app does it; the file of one of them."""
    execution = f'[execution]\nprecision = "f32"\nstreams = 1\ninfer_requests = 1\nthreads = {options.threads}\n'
    settings = {"plain": execution, "batched": f"{execution}[batching]\nmax_size = {options.max_size}\n"}
    file = root / "plain" / "1" / "model.onnx"
    weights_model.save(file, options.widths)
    for model, text in settings.items():
        (root / model / "1").mkdir(parents=True, exist_ok=True)
        (root / model / "model.toml").write_text(text)
    (root / "batched" / "1" / "model.onnx").hardlink_to(file)
    return file


def _round(number: int, daemon: Daemon, file: Path, folder: Path, options: argparse.Namespace) -> Round:
    def load(model: str, concurrency: int) -> Load:
        return _load(daemon, model, concurrency, folder / "report.csv", options)

    def runs(batch: int) -> float:
        return _benchmark_app(file, batch, folder, options)

    plain, batched = load("plain", options.concurrency), load("batched", options.concurrency)
    print(
        f"round {number} of {options.rounds}: at {options.concurrency}, plain {plain.rate:.1f}/s, "
        f"batched {batched.rate:.1f}/s by {batched.rows:.2f} rows a run",
        flush=True,
    )
    plain_alone, batched_alone = load("plain", 1), load("batched", 1)
    print(f"  one at a time, p50: plain {plain_alone.p50:.2f} ms, batched {batched_alone.p50:.2f} ms", flush=True)
    single, full = runs(1), runs(options.max_size)
    print(f"  benchmark_app: {single:.1f} runs/s of 1 row, {full:.1f} runs/s of {options.max_size} rows", flush=True)
    return Round(plain, batched, plain_alone, batched_alone, single, full)


def _load(daemon: Daemon, model: str, concurrency: int, table: Path, options: argparse.Namespace) -> Load:
    """A closed loop of ``concurrency`` requests of one row each, for about ``--seconds``."""
    window = str(round(options.seconds * 1000 / WINDOWS))
    command = ["-m", model, "-i", "grpc", "-u", daemon.grpc, "--concurrency-range", str(concurrency), "-f", str(table)]
    # For a model without a batch dimension, perf_analyzer needs the whole shape.
    command += ["--shape", f"{weights_model.INPUT}:{'1,' if model == 'plain' else ''}{options.widths[0]}"]
    # Any deviation between the windows is accepted: the rounds even it out.
    command += ["--measurement-mode", "time_windows", "--measurement-interval", window]
    command += ["--max-trials", str(WINDOWS), "--stability-percentage", "999"]
    done = clients.perf_analyzer(*command, timeout=60 + 10 * options.seconds)
    if done.returncode != 0 or not (ran := _RUNS.search(done.stdout)):
        raise SystemExit(f"perf_analyzer failed on '{model}'\n{done.stdout}{done.stderr}")
    with table.open() as report:
        [row] = csv.DictReader(report)
    return Load(float(row["Inferences/Second"]), float(row["p50 latency"]) / 1000, int(ran[1]) / max(int(ran[2]), 1))


def _benchmark_app(file: Path, batch: int, folder: Path, options: argparse.Namespace) -> float:
    """Runs a second of ``batch`` rows, one at a time, without a server."""
    command = [str(Path(sys.executable).with_name("benchmark_app")), "-m", str(file), "-d", "CPU", "-hint", "none"]
    command += ["-nstreams", "1", "-nireq", "1", "-nthreads", str(options.threads), "-infer_precision", "f32"]
    command += ["-shape", f"{weights_model.INPUT}[{batch},{options.widths[0]}]", "-t", str(round(options.seconds))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
    count, duration = _COUNT.search(done.stdout), _DURATION.search(done.stdout)
    if done.returncode != 0 or not count or not duration:
        raise SystemExit(f"benchmark_app failed at batch {batch}\n{done.stdout}{done.stderr}")
    # Not its throughput line: that one counts rows or runs, depending on the layout it assumes.
    return int(count[1]) / float(duration[1]) * 1000


def _print(rounds: list[Round], summary: Summary, options: argparse.Namespace) -> None:
    many, batch = options.concurrency, options.max_size
    print(f"\n             requests/s at {many:<3}                p50 at 1, ms       benchmark_app runs/s")
    print(f"round     plain   batched  rows/run      plain  batched      batch 1  batch {batch}")
    for number, r in enumerate(rounds, 1):
        print(
            f"{number:5} {r.plain.rate:9.1f} {r.batched.rate:9.1f} {r.batched.rows:9.2f} {r.plain_alone.p50:10.2f} "
            f"{r.batched_alone.p50:8.2f} {r.single_runs:12.1f} {r.full_runs:8.1f}"
        )
    above = ", above the prediction's 10 %, which is no miss" if summary.gain_ratio > 1 + GAIN_BAR else ""
    print(f"\npredicted gain  {summary.predicted_gain:.2f} (benchmark_app, batch {batch} over batch 1)")
    print(f"measured gain   {summary.measured_gain:.2f} (server, batched over plain at concurrency {many})")
    print(f"ratio           {summary.gain_ratio:.3f} (bar {1 - GAIN_BAR:.2f}..{1 + GAIN_BAR:.2f}{above})")
    print(f"p50 alone       {summary.plain_p50:.2f} ms plain, {summary.batched_p50:.2f} ms batched")
    print(f"ratio           {summary.p50_ratio:.3f} (bar at most {P50_BAR})", flush=True)


if __name__ == "__main__":
    sys.exit(main())
