"""Measures the CPU of a refused call, next to that of an answered one.

    python -m benchmarks.refusals --rounds 5 --out build/bench

One daemon serves a slow model whose queue stays full, another a model that computes nothing, inline, both with inputs
of the same size. The same closed loop of unary calls goes to one and then to the other, while two calls keep the slow
model's queue full. What counts is the CPU of each daemon's event loop thread, which reads, judges and answers calls;
runs of the slow model are on another. A third daemon serves a second model as well, and so has to receive a call before
it can refuse it.

Prints medians with least and most of the rounds' ratios, and writes refusals.json. Exits with 1 if a small call that is
refused unread costs more than 0.35 of an answered one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
from tests import models
from tests.system.daemon import Daemon
from tests.system.wire import request

from benchmarks.lean_client import Heard
from benchmarks.open_loop import CHANNEL_OPTIONS, METHOD
from inferd.engine.runtime import ov
from inferd.tensors import DType

_op = ov.opset13
ROOT = Path(__file__).resolve().parents[1]
SIZES = {"2 KB": 512, "600 KB": 153_600}
BAR = 0.35
ANSWERED, UNREAD, READ, BUSY = "answered", "refused unread", "refused when read", "busy"
MEASURED = (ANSWERED, UNREAD, READ)
WARM_UP = 0.3
_TICK = os.sysconf("SC_CLK_TCK")
_SLOW = '[execution]\nstreams = 1\nthreads = 1\npath = "async"\n[queue]\nmax_length = 1\n[warmup]\nruns = 0\n'
_FULL = 'inferd_queue_length{model="slow",version="1"} 1.0'
_FAST = '[execution]\nstreams = 1\npath = "inline"\n'


def slow(elements: int, products: int = 800, size: int = 1024) -> "ov.Model":
    """``x`` -> ``y``, FP32 [1, ``elements``], which takes many seconds of one thread."""
    x = _op.parameter([1, elements], ov.Type.f32)
    x.output(0).set_names({"x"})
    value = _op.broadcast(_op.reduce_max(x, _op.constant([0, 1]), False), _op.constant([size, size]))
    mean = _op.constant(np.full((size, size), 1 / size, np.float32))
    for _ in range(products):
        value = _op.matmul(value, mean, False, False)
    y = _op.reduce_max(value, _op.constant([0]), True)
    y.output(0).set_names({"y"})
    return ov.Model([_op.result(y)], [x], "slow")


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    costs: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inferd-bench-")))
        for label, elements in SIZES.items():
            for number in range(options.rounds):
                # New ones in each round: a run that was cancelled would keep its place for seconds.
                with _servers(folder / f"{elements}-{number}", elements) as servers:
                    for name in MEASURED if number % 2 else reversed(MEASURED):
                        # Next to a machine that is not busy, an answered call would seem cheap.
                        with _kept_busy(*servers[BUSY if name == ANSWERED else name]):
                            cost = _cost(*servers[name], options.seconds, refused=name != ANSWERED)
                        costs.setdefault(label, {}).setdefault(name, []).append(cost)
                print(f"{label}: round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "refusals.json").write_text(json.dumps(costs, indent=2) + "\n")
    return 1 if _print(costs) > BAR else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.refusals", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each run")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    return parser.parse_args()


@contextmanager
def _servers(folder: Path, elements: int) -> Iterator[dict[str, tuple[Daemon, Path]]]:
    """Each daemon with the request to send to it; the slow ones are kept busy."""
    fast = models.identity(DType.FP32, [1, elements])
    models.save(fast, folder / ANSWERED, "fast", settings=_FAST)
    for name in (UNREAD, READ, BUSY):
        models.save(slow(elements), folder / name, "slow", settings=_SLOW)
    models.save(models.identity(DType.FP32, [1]), folder / READ, "other")
    flags = ("--cache-dir", str(folder / "cache"), "--probe-interval", "0")
    with ExitStack() as stack:
        servers = {}
        for name in (*MEASURED, BUSY):
            model = "fast" if name == ANSWERED else "slow"
            message = folder / f"{model}.request"
            message.write_bytes(request(model, {"x": np.zeros((1, elements), np.float32)}).SerializeToString())
            servers[name] = stack.enter_context(Daemon(folder / name, *flags)), message
        yield servers


@contextmanager
def _kept_busy(daemon: Daemon, message: Path) -> Iterator[None]:
    """One call runs and one waits, and there is room for no more."""
    with grpc.insecure_channel(daemon.grpc, options=CHANNEL_OPTIONS) as channel:
        infer = channel.unary_unary(METHOD)
        calls = [infer.future(message.read_bytes()) for _ in range(2)]
        try:
            while _FULL not in daemon.get("/metrics")[1]:
                time.sleep(0.1)
            yield
            ended = [call.exception() or "answered" for call in calls if call.done()]
            assert not ended, ended
        finally:
            for call in calls:
                call.cancel()


def _cost(daemon: Daemon, message: Path, seconds: float, *, refused: bool) -> float:
    """Microseconds of the event loop thread's CPU for each call of a closed loop of eight."""
    command = [sys.executable, "-m", "benchmarks.lean_client", daemon.grpc, "--request", str(message)]
    command += ["--in-flight", "8", "--warm-up", str(WARM_UP), "--seconds", str(seconds)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'daemon'}:{ROOT}"}
    before = _cpu(daemon.process.pid)
    done = subprocess.run(command, check=True, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    used = _cpu(daemon.process.pid) - before
    heard = Heard(**json.loads(done.stdout))
    assert (heard.answers if refused else heard.errors) == 0, heard
    return used / ((heard.answers + heard.errors) * (1 + WARM_UP / seconds)) * 1e6


def _cpu(pid: int) -> float:
    """Seconds of CPU of the process's first thread."""
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _print(costs: dict[str, dict[str, list[float]]]) -> float:
    """The table; returns the ratio with a bar."""
    print("| input | call | CPU us | of an answered one |")
    print("|---|---|---|---|")
    held_to = 0.0
    for label, of in costs.items():
        for name, own in of.items():
            ratios = [one / answered for one, answered in zip(own, of[ANSWERED], strict=True)]
            if name == UNREAD and label == next(iter(SIZES)):
                held_to = statistics.median(ratios)
            spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            print(f"| {label} | {name} | {statistics.median(own):.0f} | {spread} |")
    return held_to


if __name__ == "__main__":
    sys.exit(main())
