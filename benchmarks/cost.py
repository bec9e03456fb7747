"""Compares the server CPU of a request between this checkout and another one.

    python -m benchmarks.cost --before ../older-checkout --out build/bench

Both serve a model that computes nothing. Each round puts both under the same closed loops in alternating order, and
ratios are taken within a round. Prints the median ratios with minimum and maximum, writes cost.json to ``--out``, and
exits with 1 when a median is above ``--bar``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests import models
from tests.system.daemon import Daemon

ROOT = Path(__file__).resolve().parents[1]
CONCURRENCIES = (1, 8)


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    ratios: dict[int, list[float]] = {concurrency: [] for concurrency in CONCURRENCIES}
    seen: list[dict[str, float]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inferd-bench-")))
        models.save(models.negative([1, 16]), folder / "models", "noop")
        daemons = {
            which: stack.enter_context(
                Daemon(
                    folder / "models",
                    "--cache-dir",
                    str(folder / which),
                    environment={"PYTHONPATH": str(checkout / "daemon")},
                )
            )
            for which, checkout in (("now", ROOT), ("before", options.before.resolve()))
        }
        for number in range(options.rounds):
            for concurrency in CONCURRENCIES:
                order = list(daemons) if number % 2 else list(reversed(daemons))
                cpu = {which: _cpu(daemons[which], concurrency, options.seconds) for which in order}
                ratios[concurrency].append(cpu["now"] / cpu["before"])
                seen.append({"round": number, "concurrency": concurrency, **cpu})
                print(
                    f"round {number + 1}, {concurrency} in flight: now {cpu['now'] * 1e6:.1f}, before "
                    f"{cpu['before'] * 1e6:.1f} us of CPU a request, {ratios[concurrency][-1]:.3f}",
                    flush=True,
                )
    medians = {concurrency: statistics.median(own) for concurrency, own in ratios.items()}
    for concurrency, own in ratios.items():
        print(f"{concurrency} in flight: {medians[concurrency]:.3f} of before ({min(own):.3f} to {max(own):.3f})")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"medians": medians, "ratios": ratios, "rounds": seen, "bar": options.bar}
    (options.out / "cost.json").write_text(json.dumps(report, indent=2) + "\n")
    return 1 if max(medians.values()) > options.bar else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--before", type=Path, required=True, help="the checkout to compare with")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each run")
    parser.add_argument("--bar", type=float, default=1.02)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    return parser.parse_args()


def _cpu(daemon: Daemon, concurrency: int, seconds: float) -> float:
    """CPU seconds a request, of all of the daemon's threads."""
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        file = Path(scratch) / "run.json"
        command = [sys.executable, "-m", "inferd", "bench", "run", "noop", "--server", daemon.grpc]
        command += ["--concurrency", str(concurrency), "--seconds", f"{seconds:g}s", "--warm-up", "1s"]
        command += ["--pid", str(daemon.process.pid), "--json", str(file)]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "daemon")}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        (step,) = json.loads(file.read_text())["steps"]
        return float(step["server"]["cpu"])


if __name__ == "__main__":
    sys.exit(main())
