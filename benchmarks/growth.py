"""Measures throughput, latency, CPU and memory as connections, models, workers and requests in flight grow.

    python -m benchmarks.growth --out build/bench

A daemon serves models that compute nothing, so that only the cost of serving grows. A closed loop in this process
spreads 1 to 10,000 requests in flight over 1 to 1,000 connections and 1 to 50 models, and 1 to 4 worker processes.
Workers show only their cost where there are fewer CPUs. Each step reports responses a second, latency, CPU seconds of
the daemon a response, and its resident memory, all its processes together. Bars:

- no cliff: from 32 requests in flight on, no step answers less than 0.7 times what the step before it does, and none
  costs more than 1.5 times its CPU a response;
- memory: at most 64 KiB a request in flight, 256 KiB a connection, 4 MiB a model, 256 MiB a worker.

Prints a table, writes growth.json and growth.png to ``--out`` (the picture also to ``--picture``), and exits with 1
when a bar is missed.
"""

import argparse
import asyncio
import json
import resource
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle, pairwise
from pathlib import Path

import grpc
import numpy as np
import uvloop
from tests import models
from tests.system.daemon import Daemon
from tests.system.wire import request

from benchmarks import plot_growth
from benchmarks.open_loop import CHANNEL_OPTIONS, METHOD, quantile
from benchmarks.peers.clients import Lane, closed_loop
from benchmarks.peers.processes import cpu_seconds
from benchmarks.workers import processes_of
from inferd.tensors import DType

CONNECTIONS, MODELS, IN_FLIGHT = (1, 10, 100, 1000), (1, 10, 50), (1, 8, 32, 100, 1000, 10_000)
WORKERS = (1, 2, 4)
BUSY = 32
"""Requests in flight in the other series; fewer do not keep a server busy."""
CLIFF_BAR, COST_BAR = 0.7, 1.5
KIB = 1024
MEMORY_BARS = {"in flight": 64 * KIB, "connections": 256 * KIB, "models": 4096 * KIB, "workers": 256 << 20}
_OPEN_FILES = 8192
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """One step of ``series``, at ``count``. Rates are a second, times seconds, ``resident`` the daemon's bytes at the
    end.

    ``each`` is the growth of resident memory since the first step of the series, per unit of ``count``; None at that
    step.
    """

    series: str
    count: int
    throughput: float
    p50: float
    p99: float
    cpu: float
    resident: int
    each: float | None
    errors: int
    error: str


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _OPEN_FILES)), hard))
    steps: list[Step] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        # One daemon for each series: a daemon keeps its memory, which would count in the next.
        with _daemon(1) as daemon:
            for count in options.in_flight:
                # The queue is full only once as many requests as are in flight have been answered.
                settle = options.seconds * (3 if count > 1000 else 1)
                steps.append(loop.run(_step(daemon, "in flight", count, 4, 1, count, settle, options.seconds, steps)))
                _print(steps[-1])
        with _daemon(1) as daemon:
            for count in options.connections:
                steps.append(loop.run(_step(daemon, "connections", count, count, 1, BUSY, 1.0, options.seconds, steps)))
                _print(steps[-1])
        for count in options.models:
            with _daemon(count) as daemon:
                steps.append(loop.run(_step(daemon, "models", count, 4, count, BUSY, 1.0, options.seconds, steps)))
                _print(steps[-1])
        for count in options.workers:
            with _daemon(1, "--workers", str(count)) as daemon:
                steps.append(loop.run(_step(daemon, "workers", count, BUSY, 1, BUSY, 1.0, options.seconds, steps)))
                _print(steps[-1])
    missed = _misses(steps)
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"seconds": options.seconds, "steps": [asdict(step) for step in steps], "missed": missed}
    (options.out / "growth.json").write_text(json.dumps(report, indent=2) + "\n")
    for file in (options.out / "growth.png", options.picture):
        if file is not None:
            plot_growth.draw(report, file)
    for miss in missed:
        print(f"MISSED: {miss}")
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each step")
    parser.add_argument("--connections", type=int, nargs="*", default=CONNECTIONS)
    parser.add_argument("--models", type=int, nargs="*", default=MODELS)
    parser.add_argument("--workers", type=int, nargs="*", default=WORKERS)
    parser.add_argument("--in-flight", type=int, nargs="*", default=IN_FLIGHT)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    parser.add_argument("--picture", type=Path, help="another file for the picture")
    return parser.parse_args()


@contextmanager
def _daemon(count: int, *more: str) -> Iterator[Daemon]:
    """A daemon of ``count`` models, with a queue long enough for the whole load, and ``more`` flags."""
    with tempfile.TemporaryDirectory(prefix="inferd-bench-") as scratch:
        repository = Path(scratch) / "models"
        for number in range(count):
            execution = "[execution]\nstreams = 2\nthreads = 2\ninfer_requests = 2\n"
            models.save(models.identity(DType.FP32, [1, 4]), repository, _name(number), settings=execution)
        flags = ("--cache-dir", f"{scratch}/cache", "--probe-interval", "0", "--queue-max-length", "20000")
        with Daemon(repository, *flags, "--max-concurrent-streams", "20000", *more) as daemon:
            yield daemon


def _name(number: int) -> str:
    return f"noop-{number:02}"


async def _step(
    daemon: Daemon,
    series: str,
    count: int,
    connections: int,
    asked: int,
    in_flight: int,
    settle: float,
    seconds: float,
    before: Sequence[Step],
) -> Step:
    pids, edges = processes_of(daemon), []

    def at_edge() -> None:
        edges.append((cpu_seconds(pids), sum(map(_resident, pids))))

    async with _lanes(daemon.grpc, connections, asked, in_flight) as lanes:
        heard = await closed_loop(lanes, settle, seconds, at_edge)
    (first_cpu, _), (last_cpu, resident) = edges
    p50, p99 = quantile(heard.latencies, 0.5), quantile(heard.latencies, 0.99)
    if p50 is None or p99 is None or not heard.rate:
        raise SystemExit(f"nothing was answered with {count} {series}: {heard.errors[:1]}")
    start = next((step for step in before if step.series == series), None)
    each = (resident - start.resident) / (count - start.count) if start else None
    cpu = (last_cpu - first_cpu) / heard.seconds / heard.rate
    return Step(series, count, heard.rate, p50, p99, cpu, resident, each, len(heard.errors), (heard.errors or [""])[0])


@asynccontextmanager
async def _lanes(target: str, connections: int, asked: int, in_flight: int) -> AsyncIterator[list[Lane]]:
    """Lanes that each take the next connection and the next model for each request."""
    message = {"x": np.zeros((1, 4), np.float32)}
    messages = [request(_name(number), message).SerializeToString() for number in range(asked)]
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS))
            for _ in range(min(connections, in_flight) if connections <= 4 else connections)
        ]
        async with asyncio.timeout(_PATIENCE):
            await asyncio.gather(*(channel.channel_ready() for channel in channels))
        calls, asks = cycle([channel.unary_unary(METHOD) for channel in channels]), cycle(messages)
        yield [lambda: next(calls)(next(asks), timeout=_PATIENCE)] * in_flight


def _resident(pid: int) -> int:
    """Bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def _misses(steps: Sequence[Step]) -> list[str]:
    found = []
    for series in dict.fromkeys(step.series for step in steps):
        own = [step for step in steps if step.series == series]
        busy = [step for step in own if series != "in flight" or step.count >= BUSY]
        for before, step in pairwise(busy):
            if step.throughput < CLIFF_BAR * before.throughput:
                part = step.throughput / before.throughput
                found.append(f"{step.count} {series}: {part:.2f} of the answers with {before.count}, below {CLIFF_BAR}")
            if step.cpu > COST_BAR * before.cpu:
                part = step.cpu / before.cpu
                found.append(f"{step.count} {series}: {part:.2f} times the CPU with {before.count}, above {COST_BAR}")
        found += [f"{s.count} {series}: {s.errors} requests failed, the first with: {s.error}" for s in own if s.errors]
        last = own[-1]
        if last.each is not None and last.each > MEMORY_BARS[series]:
            found.append(f"{series}: {last.each / KIB:.0f} KiB each, above {MEMORY_BARS[series] / KIB:.0f} KiB")
    return found


def _print(step: Step) -> None:
    each = f"{step.each / KIB:8.1f} KiB each" if step.each is not None else ""
    print(
        f"{step.count:6} {step.series:12} {step.throughput:8.1f}/s  p50 {step.p50 * 1e3:8.2f} ms  "
        f"p99 {step.p99 * 1e3:8.2f} ms  CPU {step.cpu * 1e6:6.0f} us  {step.resident / 2**20:6.0f} MiB {each}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
