"""Measures the server CPU of a request: inferd with a model that computes nothing, next to a bare gRPC echo in Python.

    python -m benchmarks.hot_path --rounds 5 --out build/bench

Each round sends the same requests to a bare `grpc.aio` echo of the same message sizes (benchmarks/bare_echo.py) and to
inferd, one after the other over one connection, with a fixed number in flight, and reads the CPU time of each server's
process from the kernel. inferd runs twice, with OpenVINO's own threads and with inferd's (`path = "sync"`), and both
are measured unary and over a stream. Bars, on medians of the rounds' ratios:

- unary costs at most 1.5 times the echo;
- streams cost at most 0.6 times unary; the cost of the echo's own streams is shown next to them.

Prints the ratios, writes hot_path.json and exits with 1 when a bar is missed.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np
import uvloop
from tests import models
from tests.system.daemon import Daemon
from tests.system.wire import request

from benchmarks.open_loop import CHANNEL_OPTIONS, METHOD
from inferd.tensors import DType

UNARY_BAR, STREAM_BAR = 1.5, 0.6
PATHS = ("async", "sync", "inline")
STREAM = METHOD.replace("ModelInfer", "ModelStreamInfer")
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Look:
    """One server for one round: responses a second, and microseconds of its CPU for each."""

    rate: float
    cpu: float


@dataclass(frozen=True, slots=True)
class Subject:
    """A server: its address, its process, and the request to send."""

    target: str
    pid: int
    message: bytes


def main() -> int:
    """Measure, print, write; the exit status."""
    options = _options()
    looks: dict[str, list[Look]] = {}
    with ExitStack() as stack:
        subjects = _subjects(stack, options.elements)
        ways = [(name, how) for name in subjects for how in ("unary", "stream")]
        for number in range(-1, options.rounds):
            for name, how in ways:
                # The round before the first warms up.
                count = options.requests if number >= 0 else options.requests // 10
                look = uvloop.run(_look(subjects[name], how, count, options.in_flight))
                if number >= 0:
                    looks.setdefault(f"{name}, {how}", []).append(look)
                    print(f"{number + 1}  {name}, {how}: {look.cpu:.0f} us, {look.rate:.0f}/s", flush=True)
    ratios = _ratios(looks)
    missed = [f"{name}: {ratio[0]:.2f} (bar {ratio[-1]})" for name, ratio in ratios.items() if ratio[0] > ratio[-1]]
    streamed = [a.cpu / b.cpu for a, b in zip(looks["echo, stream"], looks["echo, unary"], strict=True)]
    print(
        f"the echo's own stream to unary: {statistics.median(streamed):.2f} [{min(streamed):.2f}, {max(streamed):.2f}]"
    )
    for name, (median, least, most, bar) in ratios.items():
        print(f"{name}: {median:.2f} [{least:.2f}, {most:.2f}], bar {bar}")
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"looks": {name: [asdict(look) for look in of] for name, of in looks.items()}, "ratios": ratios}
    (options.out / "hot_path.json").write_text(json.dumps(report, indent=2) + "\n")
    for miss in missed:
        print(f"MISSED: {miss}")
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hot_path", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=20_000, help="of one look")
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--elements", type=int, default=16, help="FP32 values of the input, and of the answer")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of what is written")
    return parser.parse_args()


def _subjects(stack: ExitStack, elements: int) -> dict[str, Subject]:
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inferd-bench-")))
    for path in PATHS:
        settings = f'[execution]\nstreams = 1\npath = "{path}"\n[queue]\nmax_length = 4096\n'
        models.save(models.identity(DType.FP32, [elements]), scratch / "models", f"noop-{path}", settings=settings)
    daemon = stack.enter_context(
        Daemon(scratch / "models", "--cache-dir", str(scratch / "cache"), "--probe-interval", "0")
    )
    values = np.zeros(elements, np.float32)
    asked = {path: request(f"noop-{path}", {"x": values}).SerializeToString() for path in PATHS}
    # The response is as long as the request, except for a version and the names of its parts.
    port, pid = stack.enter_context(_echo(len(asked["async"])))
    return {
        "echo": Subject(f"127.0.0.1:{port}", pid, asked["async"]),
        **{f"inferd {path}": Subject(daemon.grpc, daemon.process.pid, asked[path]) for path in PATHS},
    }


@contextmanager
def _echo(nbytes: int) -> Iterator[tuple[int, int]]:
    command = [sys.executable, "-m", "benchmarks.bare_echo", str(nbytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.kill()


async def _look(subject: Subject, how: str, count: int, in_flight: int) -> Look:
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(subject.target, options=CHANNEL_OPTIONS))
        await channel.channel_ready()
        before, begun = _cpu(subject.pid), time.monotonic()
        if how == "unary":
            await _unary(channel.unary_unary(METHOD), subject.message, count, in_flight)
        else:
            await _stream(channel.stream_stream(STREAM)(), subject.message, count, in_flight)
        took = time.monotonic() - begun
        return Look(count / took, (_cpu(subject.pid) - before) / count * 1e6)


async def _unary(send: grpc.aio.UnaryUnaryMultiCallable, message: bytes, count: int, in_flight: int) -> None:
    left = count

    async def ask() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await send(message)

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(ask())


async def _stream(call: grpc.aio.StreamStreamCall, message: bytes, count: int, in_flight: int) -> None:
    sent = deque(range(min(in_flight, count)))
    for _ in sent:
        await call.write(message)
    for number in range(count):
        await call.read()
        if number + in_flight < count:
            await call.write(message)
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK


def _cpu(pid: int) -> float:
    """Seconds of CPU time of the process, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _ratios(looks: dict[str, list[Look]]) -> dict[str, tuple[float, float, float, float]]:
    """Median, least, most and bar."""
    pairs = {
        f"inferd {path}, unary, to the echo": (f"inferd {path}, unary", "echo, unary", UNARY_BAR) for path in PATHS
    } | {
        f"inferd {path}, stream to unary": (f"inferd {path}, stream", f"inferd {path}, unary", STREAM_BAR)
        for path in PATHS
    }
    ratios = {}
    for name, (one, other, bar) in pairs.items():
        each = [a.cpu / b.cpu for a, b in zip(looks[one], looks[other], strict=True)]
        ratios[name] = (statistics.median(each), min(each), max(each), bar)
    return ratios


if __name__ == "__main__":
    sys.exit(main())
