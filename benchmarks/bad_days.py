"""Runs bad days: everything that clients and operators do to a daemon, by chance, next to good clients.

    python -m benchmarks.bad_days --minutes 30 --out build/bench
    python -m benchmarks.bad_days --each 8

First random arrivals of good requests are timed alone, for a sixth of the time; then next to a process that does one
bad thing after the other, every three seconds or so (tests/system/bad_days.py has the list). Bars:

- none of the good requests fails;
- their p99 next to bad things is at most twice what it is alone;
- the daemon's memory stays below ``max_memory_bytes`` and 256 MiB, and is in the last fifth, at its least, at most 10 %
  above the second;
- what the daemon counts for the good requests' model is what its client counted;
- no traceback is in the log.

With ``--each SECONDS`` each bad thing is repeated for so long instead, every three seconds, and a table says what good
requests waited next to it; without bars.

Prints the figures, writes bad_days.json to ``--out``, and exits with 1 when a bar is missed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import uvloop
from tests import models
from tests.engine import models as small
from tests.system.bad_days import THINGS
from tests.system.daemon import Daemon
from tests.system.memory import Growth
from tests.system.test_large_responses import convolutions, repeated
from tests.system.wire import counts, request

from benchmarks.open_loop import Outcome, poisson, quantile
from inferd.tensors import DType

CHUNK = 10.0
LIMIT = 768 << 20
SPARE = 256 << 20
BAD = (sys.executable, "-m", "tests.system.bad_days")
RATIO_BAR, GROWTH_BAR = 2.0, 0.1
GOOD = request("good", {"x": np.zeros(4, np.float32)}).SerializeToString()


def main() -> int:
    """Measure, print, write; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bad_days", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=50.0, help="good requests a second, random arrivals")
    parser.add_argument("--ratio", type=float, default=RATIO_BAR, help="p99 next to bad things, by that without")
    parser.add_argument("--growth", type=float, default=GROWTH_BAR, help="part by which memory may grow")
    parser.add_argument("--each", type=float, help="seconds for each bad thing, one after the other")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    options = parser.parse_args()
    seconds = options.minutes * 60
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        repository = Path(scratch) / "models"
        models.save(models.identity(DType.FP32, [-1]), repository, "good")
        models.save(models.identity(DType.BYTES, [-1]), repository, "text")
        models.save(small.identity((-1,)), repository, "bad")
        models.save(repeated(), repository, "huge")
        models.save(convolutions(), repository, "shapes")
        flags = ("--cache-dir", f"{scratch}/cache", "--max-memory-bytes", str(LIMIT), "--message-timeout", "5s")
        with Daemon(repository, *flags, "--preflight", "on") as daemon:
            target = [daemon.grpc, daemon.metrics, str(repository), str(daemon.process.pid), str(options.seed)]
            if options.each:
                return _each(daemon, target, options.each, options.rate)
            growth = Growth(daemon.process.pid)
            alone = _good(daemon, seconds / 6, options.rate, growth, [])
            memory: list[int] = []
            with subprocess.Popen([*BAD, *target], stdout=subprocess.PIPE, text=True) as bad:
                try:
                    during = _good(daemon, seconds, options.rate, growth, memory)
                finally:
                    bad.kill()
                    things = Counter((bad.stdout.read() if bad.stdout is not None else "").split())
            counted, most = counts(daemon)["good", "ok"], growth.most
            tracebacks = [line for line in daemon.lines if '"exception"' in line]
    said = Counter(outcome.code for outcome in (*alone, *during))
    runs = {"alone": alone, "during": during}
    p99 = {name: quantile([o.latency / 1e9 for o in run], 0.99) or 0.0 for name, run in runs.items()}
    fifth = max(1, len(memory) // 5)
    grown = min(memory[-fifth:]) / min(memory[fifth : 2 * fifth] or memory) - 1
    ratio = p99["during"] / p99["alone"]
    print(f"{len(alone)} + {len(during)} good requests: {dict(said)}; bad things: {dict(things)}")
    print(f"p99 {p99['alone'] * 1000:.1f} ms alone, {p99['during'] * 1000:.1f} ms during them: {ratio:.2f}")
    print(f"memory at most {most >> 20} MiB, {grown:+.1%} from the second fifth to the last")
    missed = [
        *([f"good requests failed: {dict(said)}"] if set(said) != {"OK"} else []),
        *([f"p99 is {ratio:.2f} times what it is alone"] if ratio > options.ratio else []),
        *([f"{most >> 20} MiB of memory"] if most > LIMIT + SPARE else []),
        *([f"memory grew by {grown:+.1%}"] if grown > options.growth else []),
        *([f"the daemon counted {counted} of {said.total()} good requests"] if counted != said.total() else []),
        *([f"{len(tracebacks)} tracebacks, such as {tracebacks[0]}"] if tracebacks else []),
    ]
    report = {"p99": p99, "good": dict(said), "bad": dict(things), "memory": memory, "most": most, "missed": missed}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bad_days.json").write_text(json.dumps(report, indent=2) + "\n")
    for miss in missed:
        print(f"MISSED: {miss}")
    return 1 if missed else 0


def _each(daemon: Daemon, target: Sequence[str], seconds: float, rate: float) -> int:
    """Print what good requests wait alone, and next to each bad thing."""
    print(f"{'next to':20} {'p50':>8} {'p99':>8} {'most':>8}  ms")
    for name in ("nothing", *(thing.__name__ for thing in THINGS)):
        with ExitStack() as stack:
            if name != "nothing":
                bad = stack.enter_context(subprocess.Popen([*BAD, *target, name], stdout=subprocess.DEVNULL))
                stack.callback(bad.kill)
            outcomes = uvloop.run(poisson(daemon.grpc, GOOD, rate, seconds, 0))
        waits = sorted(outcome.latency / 1e6 for outcome in outcomes)
        p50, p99 = (quantile(waits, share) or 0.0 for share in (0.5, 0.99))
        print(f"{name:20} {p50:8.1f} {p99:8.1f} {waits[-1]:8.1f}", flush=True)
    return 0


def _good(daemon: Daemon, seconds: float, rate: float, growth: Growth, memory: list[int]) -> list[Outcome]:
    """Good requests for so long; adds the resident bytes after each chunk to ``memory``."""
    outcomes: list[Outcome] = []
    begun = time.monotonic()
    while time.monotonic() - begun < seconds:
        outcomes += uvloop.run(poisson(daemon.grpc, GOOD, rate, min(CHUNK, seconds), len(outcomes)))
        memory.append(growth.resident)
        minutes = (time.monotonic() - begun) / 60
        print(f"{minutes:5.1f} min  {len(outcomes)} good requests  {memory[-1] >> 20} MiB", flush=True)
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
