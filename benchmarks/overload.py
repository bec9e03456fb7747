"""Measures goodput and latency when clients ask for more than the daemon can compute.

    python -m benchmarks.overload --baseline --out build/bench

One daemon serves a model twice, with a latency objective and without. A closed loop on the one without finds the
capacity. An open loop of random arrivals then offers 0.5, 1, 2 and 5 times as much to the one with the objective, in
two passes and mixed order, so that other work on the machine affects all rates alike. Bars:

- goodput, responses within the objective a second, at 2 and 5 times the capacity is at least 90 % of the best over the
  four rates;
- p99 of the requests answered OK is below the objective at each rate;
- the daemon's memory in the second pass is at most 5 % above the first.

Prints a table, writes overload.json and overload.png to ``--out``, and exits with 1 when a bar is missed. With
``--baseline`` the model without an objective gets the same load for comparison, without bars.
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np
import uvloop
from tests import models
from tests.system.daemon import Daemon

from benchmarks import plot_overload
from benchmarks.closed_loop import capacity
from benchmarks.open_loop import Figures, Outcome, poisson
from inferd._pb import open_inference_pb2 as pb
from inferd.engine.runtime import ov
from inferd.rpc.client import InferenceClient

LOADS = (0.5, 5.0, 1.0, 2.0)
"""Multiples of the capacity, in the order of a pass."""
PASSES = 2
SETTLE = 1.0
"""Seconds of each run that are left out at its start: the queue is still filling."""

GOODPUT_BAR = 0.9
MEMORY_BAR = 1.05
FOREIGN_CPU = 0.1
"""Above this much CPU taken by other processes, in CPUs, the figures come with a warning."""

SYNTHETIC = "products"
WITHOUT = "-without-objective"
"""The suffix of the name of the twin without an objective."""

_op = ov.opset13


@dataclass(frozen=True, slots=True)
class Served:
    """A model under test at ``address``: a request for it, one for its twin, and the capacity of the machine.

    ``capacity`` is in responses a second, ``pid`` the daemon's.
    """

    model: str
    address: str
    pid: int
    request: bytes
    twin_request: bytes
    capacity: float


@dataclass(frozen=True, slots=True)
class Run:
    """One run at one rate: ``load`` in multiples of the capacity, ``memory`` the daemon's resident bytes over time.

    ``foreign`` is how many CPUs processes other than the daemon and this one kept busy meanwhile.
    """

    load: float
    outcomes: list[Outcome]
    memory: list[int]
    foreign: float


@dataclass(frozen=True, slots=True)
class Level:
    """All runs at one ``load``: bytes at the start of the first and the end of the last, and the highest
    ``foreign``."""

    load: float
    figures: Figures
    memory_first: int
    memory_last: int
    foreign: float


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    with serving(options) as served:
        passes = uvloop.run(_measure(served, served.request, options.seconds))
        baseline = uvloop.run(_measure(served, served.twin_request, options.seconds)) if options.baseline else []
    levels, without = _levels(passes, options), _levels(baseline, options)
    memory = [max(size for run in one for size in run.memory) for one in passes]
    misses = _misses(levels, memory, options.slo)
    _print(served, levels, f"with an objective of {options.slo * 1000:.0f} ms")
    if without:
        _print(served, without, "without an objective")
    report = {
        "model": served.model,
        "objective": options.slo,
        "seconds": options.seconds,
        "passes": PASSES,
        "capacity": served.capacity,
        "with_objective": [_flat(level) for level in levels],
        "without_objective": [_flat(level) for level in without],
        "memory_by_pass": memory,
        "missed": misses,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "overload.json").write_text(json.dumps(report, indent=2) + "\n")
    plot_overload.draw(report, options.out / "overload.png")
    for miss in misses:
        print(f"MISSED: {miss}")
    return 1 if misses else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=(__doc__ or "").split("\n")[0])
    add_model_options(parser)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each run")
    parser.add_argument("--baseline", action="store_true", help="measure the model without an objective as well")
    return parser.parse_args()


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`serving`, and the folder of the results."""
    parser.add_argument("--repository", type=Path, default=Path("models"), help="where --model is taken from")
    parser.add_argument("--model", default=SYNTHETIC, help=f"a model of --repository; '{SYNTHETIC}' is made on the fly")
    parser.add_argument("--products", type=int, default=16, help=f"matrix products in '{SYNTHETIC}': what a run costs")
    parser.add_argument("--slo", type=float, default=0.25, help="the objective: seconds a request may take")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")


# -- the model under test ---------------------------------------------------------


@contextmanager
def serving(options: argparse.Namespace) -> Iterator[Served]:
    """A daemon that serves the model of ``options`` with the objective and its twin without; measures the capacity."""
    model: str = options.model
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        folder = Path(scratch)
        _make_repository(folder / "models", options)
        print("starting the daemon", flush=True)
        with Daemon(folder / "models", "--cache-dir", str(folder / "cache")) as daemon:
            address = daemon.grpc
            request, twin_request = request_for(address, model), request_for(address, model + WITHOUT)
            print("measuring the capacity", flush=True)
            concurrency = 2 * _infer_requests(address, model)
            rate = uvloop.run(capacity(address, twin_request, concurrency, options.seconds / 2))
            print(f"capacity {rate:.1f}/s, best of three windows, {concurrency} requests in flight", flush=True)
            yield Served(model, address, daemon.process.pid, request, twin_request, rate)


def products(count: int, size: int = 512) -> "ov.Model":
    """``x`` -> ``y``, FP32 [1, ``size``], by ``count`` products of two square matrices.

    A request is 2 KB and a run some ten milliseconds of one thread, so that a request is expensive and its refusal
    cheap. All products share one matrix, which fits a core's own cache.
    """
    x = _op.parameter([1, size], ov.Type.f32)
    x.output(0).set_names({"x"})
    value = _op.broadcast(x, _op.constant([size, size]))
    # Every element is the mean of a row: numbers neither grow nor become denormal, which would be slow.
    mean = _op.constant(np.full((size, size), 1 / size, np.float32))
    for _ in range(count):
        value = _op.matmul(value, mean, False, False)
    y = _op.reduce_max(value, _op.constant([0]), True)
    y.output(0).set_names({"y"})
    return ov.Model([_op.result(y)], [x], SYNTHETIC)


def _make_repository(root: Path, options: argparse.Namespace) -> None:
    model: str = options.model
    twin = root / (model + WITHOUT)
    if model == SYNTHETIC:
        # Two streams of one thread each: a run does not slow down when another starts.
        models.save(products(options.products), root, twin.name, settings="[execution]\nstreams = 2\nthreads = 2\n")
    else:
        shutil.copytree(options.repository / model, twin)
    settings = twin / "model.toml"
    text = settings.read_text() if settings.exists() else ""
    if "objective" in tomllib.loads(text):
        raise SystemExit(f"{model}/model.toml has a table [objective] of its own; take it out of a copy")
    shutil.copytree(twin, root / model)
    (root / model / "model.toml").write_text(f"{text}\n[objective]\nlatency_slo = {options.slo}\npercentile = 99.0\n")


def request_for(address: str, model: str) -> bytes:
    """A ModelInferRequest for ``model``, every input all ones and as small as it may be."""
    request = pb.ModelInferRequest(model_name=model)
    with InferenceClient(address) as client:
        for spec in client.model_metadata(model).inputs:
            shape = [max(1, dim) for dim in spec.wire_shape]
            request.inputs.add(name=spec.name, datatype=spec.dtype.wire, shape=shape)
            request.raw_input_contents.append(np.ones(shape, spec.dtype.numpy).tobytes())
    return request.SerializeToString()


def _infer_requests(address: str, model: str) -> int:
    """How many requests of ``model`` the daemon runs at a time."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelMetadata",
            pb.ModelMetadataRequest.SerializeToString,
            pb.ModelMetadataResponse.FromString,
        )
        properties = ask(pb.ModelMetadataRequest(name=model), timeout=10).properties
    return sum(int(value) for name, value in properties.items() if name.endswith(".infer_requests"))


# -- the runs ---------------------------------------------------------------------


async def _measure(served: Served, request: bytes, seconds: float) -> list[list[Run]]:
    """Every load once in each pass."""
    passes: list[list[Run]] = []
    for number in range(PASSES):
        passes.append([])
        for load in LOADS:
            rate, seed = load * served.capacity, number * len(LOADS) + LOADS.index(load)
            watching, busy, start = asyncio.create_task(_memory(served.pid)), foreign_cpu(served.pid), time.monotonic()
            outcomes = await poisson(served.address, request, rate, SETTLE + seconds, seed)
            watching.cancel()
            foreign = (foreign_cpu(served.pid) - busy) / (time.monotonic() - start)
            passes[-1].append(Run(load, outcomes, await watching, foreign))
            ok = sum(outcome.code == "OK" for outcome in outcomes)
            print(f"pass {number + 1} of {PASSES}, {load:g}x: {ok} of {len(outcomes)} answered OK", flush=True)
    return passes


async def _memory(pid: int) -> list[int]:
    """Resident bytes of process ``pid`` now and every half second until cancelled; a cancel is its normal end."""
    status, sizes = Path(f"/proc/{pid}/status"), []
    try:
        while True:
            text = status.read_text()  # noqa: ASYNC240 - no disk is behind it
            sizes.append(int(text.partition("VmRSS:")[2].split()[0]) * 1024)
            await asyncio.sleep(0.5)
    except asyncio.CancelledError:
        return sizes


def foreign_cpu(pid: int) -> float:
    """CPU seconds of all processes except ``pid`` and this one since the machine started."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split()[1:11])
    # The name, in brackets, may hold anything; user and system time are the 14th and 15th field.
    own = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    ticks = user + nice + system + irq + softirq + steal - sum(map(int, own))
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def _levels(passes: list[list[Run]], options: argparse.Namespace) -> list[Level]:
    levels = []
    for load in sorted(LOADS) if passes else ():
        runs = [run for one in passes for run in one if run.load == load]
        figures = Figures.of([run.outcomes for run in runs], SETTLE, options.seconds, options.slo)
        foreign = max(run.foreign for run in runs)
        levels.append(Level(load, figures, runs[0].memory[0], runs[-1].memory[-1], foreign))
    return levels


def _misses(levels: list[Level], memory: list[int], slo: float) -> list[str]:
    """The missed bars, in words."""
    peak = max(level.figures.goodput for level in levels)
    found = [
        f"goodput at {level.load:g}x is {level.figures.goodput / peak:.0%} of its peak, below {GOODPUT_BAR:.0%}"
        for level in levels
        if level.load > 1 and level.figures.goodput < GOODPUT_BAR * peak
    ]
    found += [
        f"p99 at {level.load:g}x is {_ms(level.figures.p99)} ms, not below {slo * 1000:.0f} ms"
        for level in levels
        if level.figures.p99 is None or level.figures.p99 >= slo
    ]
    if memory[-1] > MEMORY_BAR * memory[0]:
        found.append(f"memory grew from {_mib(memory[0])} to {_mib(memory[-1])} MiB from the first to the last pass")
    return found


def _print(served: Served, levels: list[Level], which: str) -> None:
    peak = max(level.figures.goodput for level in levels) or 1.0
    print(f"\n{served.model} {which}, capacity {served.capacity:.1f}/s; rates per second, times in ms, memory in MiB")
    print(
        "load  offered  answered  goodput  of peak  refused  expired  failed  unanswered"
        "      p50      p99  client lag p99  memory first  last  other CPU"
    )
    for level in levels:
        f = level.figures
        print(
            f"{level.load:3g}x  {f.offered:7.1f}  {f.answered:8.1f}  {f.goodput:7.1f}  {f.goodput / peak:7.0%}"
            f"  {f.refused:7.1f}  {f.expired:7.1f}  {f.failed:6.1f}  {f.unanswered:10.1f}"
            f"  {_ms(f.p50):>7}  {_ms(f.p99):>7}  {_ms(f.lag_p99):>14}"
            f"  {_mib(level.memory_first):>12}  {_mib(level.memory_last):>4}  {level.foreign:9.2f}"
        )
    if (most := max(level.foreign for level in levels)) > FOREIGN_CPU:
        print(f"other processes kept up to {most:.2f} CPUs busy during a run: take these figures with care")


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f}"


def _flat(level: Level) -> dict[str, float | None]:
    """One level as a flat mapping, for the report."""
    whole = asdict(level)
    figures: dict[str, float | None] = whole.pop("figures")
    return whole | figures


if __name__ == "__main__":
    sys.exit(main())
