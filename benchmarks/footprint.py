"""Measures an idle daemon: seconds to ready, resident memory, and the cost of imports.

    python -m benchmarks.footprint --out build/bench

For 1, 10 and 50 different models of 1 MiB of weights each, a daemon starts with an empty cache and then, `--starts`
times, with the cache that it filled. Time runs from before its process is made to the line that says it is ready.
Imports are measured with `python -X importtime`, in a process that imports what `inferd serve` does. Bars:

- with its cache, the daemon of most models is ready within a third of the time that it takes without;
- a further model adds at most 4 MiB of resident memory;
- `inferd --help` takes at most 0.5 s of CPU, and imports neither OpenVINO nor gRPC.

Prints the figures, writes footprint.json to ``--out`` and exits with 1 when a bar is missed.
"""

import argparse
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from tests import models
from tests.system.daemon import Daemon

from inferd.engine.runtime import ov

COUNTS = (1, 10, 50)
WIDTH = 512
"""Of the square matrix that is a model's weights, FP32: 1 MiB."""
CACHE_BAR, MODEL_BAR, HELP_BAR = 1 / 3, 4 * 2**20, 0.5
HEAVY = ("openvino", "grpc")
TOP = 15
_LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|(\s+)(\S+)")

_op = ov.opset13


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds to ready without a cache and, at the median, with; resident bytes once ready, in both cases."""

    models: int
    cold: float
    cached: float
    resident_cold: int
    resident_cached: int


@dataclass(frozen=True, slots=True)
class Import:
    """A module: microseconds of its import with all its own imports, and by itself."""

    module: str
    cumulative: int
    own: int


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    starts = [_start(count, options.starts) for count in options.models]
    each = None
    if len(starts) > 1:
        each = (starts[-1].resident_cached - starts[0].resident_cached) / (starts[-1].models - starts[0].models)
        print(f"a further model adds {each / 2**20:.2f} MiB")
    imported = imports("inferd.cli.serve, inferd.app")
    _print(imported)
    help_seconds = _cpu_of("-m", "inferd", "--help")
    helped = {name.partition(".")[0] for name in (i.module for i in imports("inferd.cli.main"))}
    print(f"inferd --help takes {help_seconds:.2f} s of CPU")
    missed = _misses(starts, each, help_seconds, helped)
    report = {
        "starts": [asdict(start) for start in starts],
        "bytes_a_model": each,
        "imports": [asdict(one) for one in imported[:TOP]],
        "help_seconds": help_seconds,
        "missed": missed,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "footprint.json").write_text(json.dumps(report, indent=2) + "\n")
    for miss in missed:
        print(f"MISSED: {miss}")
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.footprint", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=int, nargs="+", default=COUNTS, help="how many, from few to many")
    parser.add_argument("--starts", type=int, default=3, help="starts from the cache, of which the median is taken")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    return parser.parse_args()


# -- starting ---------------------------------------------------------------------


def _start(count: int, starts: int) -> Start:
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        repository = Path(scratch) / "models"
        for number in range(count):
            models.save(_model(number), repository, f"model-{number:02}")
        seen = []
        for _ in range(1 + starts):
            begun = time.monotonic()
            with Daemon(repository, "--cache-dir", f"{scratch}/cache") as daemon:
                ready = time.monotonic() - begun
                pages = int(Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1])
                seen.append((ready, pages * resource.getpagesize()))
    (cold, resident_cold), *cached = seen
    start = Start(count, cold, median(s for s, _ in cached), resident_cold, int(median(r for _, r in cached)))
    print(
        f"{count:3} models  ready after {start.cold:6.2f} s, {start.cached:6.2f} s from the cache  "
        f"resident {start.resident_cold / 2**20:5.0f} MiB, {start.resident_cached / 2**20:5.0f} MiB",
        flush=True,
    )
    return start


def _model(number: int) -> "ov.Model":
    """``x`` -> ``y``, FP32 [1, 512], with different weights for each number."""
    x = _op.parameter([1, WIDTH], np.float32)
    x.output(0).set_names({"x"})
    weights = np.random.default_rng(number).standard_normal((WIDTH, WIDTH), np.float32)
    y = _op.matmul(x, _op.constant(weights), False, False)
    y.output(0).set_names({"y"})
    return ov.Model([_op.result(y)], [x], f"model-{number}")


# -- importing --------------------------------------------------------------------


def imports(modules: str) -> list[Import]:
    """The imports of a process that imports only ``modules``, the longest first."""
    command = [sys.executable, "-X", "importtime", "-c", f"import {modules}"]
    written = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    found = [
        Import(match[4], int(match[2]), int(match[1]))
        for match in map(_LINE.fullmatch, map(str.rstrip, written.splitlines()))
        if match
    ]
    return sorted(found, key=lambda one: -one.cumulative)


def _print(imported: Sequence[Import]) -> None:
    total = sum(one.own for one in imported)
    print(f"importing what serve does takes {total / 1000:.0f} ms; the longest, with all below them:")
    for one in imported[:TOP]:
        print(f"  {one.cumulative / 1000:7.1f} ms  {one.own / 1000:6.1f} ms by itself  {one.module}")


def _cpu_of(*arguments: str) -> float:
    """CPU seconds of a Python process with ``arguments``: the median of five, after one that fills the disk cache."""
    taken = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return median(taken[1:])


def _misses(starts: Sequence[Start], each: float | None, help_seconds: float, helped: set[str]) -> list[str]:
    found = []
    most = starts[-1]
    if most.models > 1 and most.cached > CACHE_BAR * most.cold:
        part = most.cached / most.cold
        found.append(f"{most.models} models are ready from the cache after {part:.2f} of the time without it")
    if each is not None and each > MODEL_BAR:
        found.append(f"a further model adds {each / 2**20:.2f} MiB, above {MODEL_BAR / 2**20:g} MiB")
    if help_seconds > HELP_BAR:
        found.append(f"inferd --help takes {help_seconds:.2f} s of CPU, above {HELP_BAR} s")
    found += [f"inferd --help imports {name}" for name in HEAVY if name in helped]
    return found


if __name__ == "__main__":
    sys.exit(main())
