"""Compares what a request costs between this checkout, another one, and a bare grpc.aio echo.

    python -m benchmarks.cost --before ../older-checkout --out build/bench

Both checkouts serve a model that computes nothing, inline and handed over to OpenVINO's threads. Each round puts all
servers under the same closed loops, unary and over streams, one after the other, and ratios are taken within a round.
The client is benchmarks/lean_client.py, so that the servers and not the client are what is measured. Prints medians
with least and most, and writes cost.json to ``--out``; exits with 1 when the median CPU of a case is above ``--bar``
times that before.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tests import models
from tests.system.daemon import Daemon
from tests.system.wire import request

from benchmarks.hot_path import _cpu, _echo
from benchmarks.lean_client import Heard
from inferd.tensors import DType

ROOT = Path(__file__).resolve().parents[1]
ELEMENTS = 16
NOW, BEFORE, ECHO = "now", "before", "echo"
WARM_UP = 0.5


@dataclass(frozen=True, slots=True)
class Case:
    """A closed loop: a model's path of execution, requests in flight, and over how many streams; 0 is unary."""

    path: str
    in_flight: int
    streams: int = 0

    @property
    def name(self) -> str:
        how = f"{self.streams} stream{'s' * (self.streams > 1)}" if self.streams else "unary"
        return f"{self.path}, {self.in_flight} in flight, {how}"


CASES = (
    *(Case("inline", count) for count in (1, 8, 32)),
    Case("inline", 8, 1),
    Case("inline", 32, 4),
    *(Case("async", count) for count in (1, 8)),
    Case("async", 8, 1),
)


@dataclass(frozen=True, slots=True)
class Look:
    """One server in one case: microseconds of its CPU a request, answers a second, and latencies in milliseconds."""

    cpu: float
    rate: float
    p50: float
    p99: float


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    looks: dict[str, dict[str, list[Look]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inferd-bench-")))
        servers = _servers(stack, folder, options.before.resolve())
        for number in range(options.rounds):
            for case in CASES:
                order = list(servers) if number % 2 else list(reversed(servers))
                for name in order:
                    target, pid = servers[name]
                    look = _look(target, pid, folder / f"{case.path}.request", case, options.seconds)
                    looks.setdefault(case.name, {}).setdefault(name, []).append(look)
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    worst = _print(looks)
    options.out.mkdir(parents=True, exist_ok=True)
    report = {case: {name: [asdict(look) for look in own] for name, own in of.items()} for case, of in looks.items()}
    (options.out / "cost.json").write_text(json.dumps(report, indent=2) + "\n")
    return 1 if worst > options.bar else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--before", type=Path, required=True, help="the checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each run")
    parser.add_argument("--bar", type=float, default=1.02)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    return parser.parse_args()


def _servers(stack: ExitStack, folder: Path, before: Path) -> dict[str, tuple[str, int]]:
    """Address and process of each server; their requests are files in ``folder``."""
    for path in sorted({case.path for case in CASES}):
        settings = f'[execution]\nstreams = 1\npath = "{path}"\n[queue]\nmax_length = 4096\n'
        models.save(models.identity(DType.FP32, [ELEMENTS]), folder / "models", f"noop-{path}", settings=settings)
        message = request(f"noop-{path}", {"x": np.zeros(ELEMENTS, np.float32)}).SerializeToString()
        (folder / f"{path}.request").write_bytes(message)
    servers = {}
    for name, checkout in ((NOW, ROOT), (BEFORE, before)):
        flags = ("--cache-dir", str(folder / name), "--probe-interval", "0")
        environment = {"PYTHONPATH": str(checkout / "daemon")}
        daemon = stack.enter_context(Daemon(folder / "models", *flags, environment=environment))
        servers[name] = daemon.grpc, daemon.process.pid
    # The response is as long as the request, except for a version and the names of its parts.
    port, pid = stack.enter_context(_echo((folder / "inline.request").stat().st_size))
    return servers | {ECHO: (f"127.0.0.1:{port}", pid)}


def _look(target: str, pid: int, message: Path, case: Case, seconds: float) -> Look:
    command = [sys.executable, "-m", "benchmarks.lean_client", target, "--request", str(message)]
    command += ["--in-flight", str(case.in_flight), "--streams", str(case.streams)]
    command += ["--warm-up", str(WARM_UP), "--seconds", str(seconds)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'daemon'}:{ROOT}"}
    before = _cpu(pid)
    done = subprocess.run(command, check=True, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    used, heard = _cpu(pid) - before, Heard(**json.loads(done.stdout))
    assert not heard.errors, f"{heard.errors} requests failed at {target}"
    # The kernel's count covers the warm-up as well.
    answers = heard.answers * (1 + WARM_UP / seconds)
    return Look(used / answers * 1e6, heard.rate, heard.p50 * 1e3, heard.p99 * 1e3)


def _print(looks: dict[str, dict[str, list[Look]]]) -> float:
    """The table; returns the largest median of CPU now to before."""
    worst = 0.0
    print(
        "| case | CPU us: now, before, echo | CPU to before | CPU to echo | answers/s to before | p50 ms: now, before |"
    )
    print("|---|---|---|---|---|---|")
    for case, of in looks.items():
        median = {name: statistics.median(look.cpu for look in own) for name, own in of.items()}
        p50 = {name: statistics.median(look.p50 for look in own) for name, own in of.items()}
        ratios = [now.cpu / before.cpu for now, before in zip(of[NOW], of[BEFORE], strict=True)]
        worst = max(worst, statistics.median(ratios))
        print(
            f"| {case} | {median[NOW]:.0f}, {median[BEFORE]:.0f}, {median[ECHO]:.0f} | {_spread(ratios)} "
            f"| {_spread([now.cpu / echo.cpu for now, echo in zip(of[NOW], of[ECHO], strict=True)])} "
            f"| {_spread([now.rate / before.rate for now, before in zip(of[NOW], of[BEFORE], strict=True)])} "
            f"| {p50[NOW]:.2f}, {p50[BEFORE]:.2f} |"
        )
    return worst


def _spread(ratios: Sequence[float]) -> str:
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


if __name__ == "__main__":
    sys.exit(main())
