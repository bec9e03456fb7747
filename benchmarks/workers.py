"""Compares one process with two workers, and with the estimated cost of a front process before engine workers.

    python -m benchmarks.workers --rounds 3 --seconds 3 --out build/bench

Each round sends requests to a daemon of one process and one of two workers in turn, 32 in flight over 1, 2, 4 and 32
connections. One model computes nothing, so that requests wait for the interpreter; the other takes some milliseconds on
one thread, so that they wait for a CPU. The figures are responses a second, microseconds of the server's CPU a request
(all its processes), and the *share* of the busiest worker: SO_REUSEPORT gives connections to workers, not requests, and
one worker serves all requests of a client with one connection.

A front process before engine workers is estimated from hop.py and bare_echo.py. A cost model of all three says at how
many cores, and up to which service time, more than one process pays. The client runs on the same CPUs: with the model
that computes nothing it limits throughput before the server does, so the cost model is made of CPU a request.

Bars, on medians: with 32 connections two workers answer at least 0.8 times as much as one process, and take at most
1.25 times its CPU a request. Prints the tables, writes workers.json to ``--out`` and exits with 1 when a bar is missed.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc
import numpy as np
import uvloop
from tests import models
from tests.system import echo_models
from tests.system.daemon import Daemon
from tests.system.wire import request

from benchmarks import hop
from benchmarks.open_loop import CHANNEL_OPTIONS, METHOD
from inferd.tensors import DType

CONNECTIONS = (1, 2, 4, 32)
IN_FLIGHT = 32
PROCESSES = (1, 2)
STEPS = 10
"""Of the model that computes, about 0.2 ms each."""
THROUGHPUT_BAR, CPU_BAR = 0.8, 1.25
SERVICE_TIMES = (0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Look:
    """One daemon for one round. ``cpu`` is in microseconds a request, ``share`` the busiest worker's fraction of
    requests."""

    model: str
    processes: int
    connections: int
    rate: float
    cpu: float
    share: float


@dataclass(frozen=True, slots=True)
class Costs:
    """Microseconds of one interpreter's CPU a request: a whole request in inferd, the bare gRPC part of it, and a hop
    on the front's and on the engine's side."""

    request: float
    bare: float
    front: float
    engine: float

    def one(self, service: float, cores: int) -> float:
        """Requests a second of one process, limited by its interpreter or by the cores (``service`` in seconds)."""
        return min(1e6 / self.request, cores / (self.request / 1e6 + service))

    def workers(self, service: float, cores: int, count: int) -> float:
        """Requests a second of ``count`` workers with evenly spread connections."""
        return min(count * 1e6 / self.request, cores / (self.request / 1e6 + service))

    def front_process(self, service: float, cores: int, count: int) -> float:
        """Requests a second of one front process that speaks gRPC and ``count`` engine workers that do the rest."""
        front = self.bare + self.front
        worker = self.request - self.bare + self.engine
        whole = (front + worker) / 1e6 + service
        return min(1e6 / front, count * 1e6 / worker, cores / whole)

    def pays_from(self, service: float) -> float:
        """The number of cores from which one interpreter cannot keep all busy."""
        return 1 + service * 1e6 / self.request


def busiest(workers: int, connections: int, tries: int = 20_000) -> float:
    """The busiest worker's fraction of requests, on average, when each connection goes to one of ``workers`` at random
    and all carry the same number of requests."""
    chance = random.Random(1)
    total = 0
    for _ in range(tries):
        counts = [0] * workers
        for _ in range(connections):
            counts[chance.randrange(workers)] += 1
        total += max(counts)
    return total / tries / connections


async def load(target: str, message: bytes, connections: int, seconds: float) -> tuple[int, float]:
    """Send requests for about ``seconds``; the number of responses, all of which must be OK, and the seconds taken."""
    done = 0
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS))
            for _ in range(connections)
        ]
        await asyncio.gather(*(channel.channel_ready() for channel in channels))
        end = time.monotonic() + seconds

        async def ask(channel: grpc.aio.Channel) -> None:
            nonlocal done
            send = channel.unary_unary(METHOD)
            while time.monotonic() < end:
                await send(message)
                done += 1

        begun = time.monotonic()
        await asyncio.gather(*(ask(channels[number % connections]) for number in range(IN_FLIGHT)))
        return done, time.monotonic() - begun


def processes_of(daemon: Daemon) -> list[int]:
    """All processes: the supervisor with its workers, or the only one."""
    return [daemon.process.pid, *(event["pid"] for event in daemon.events("worker started"))]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def looked_at(daemon: Daemon, model: str, message: bytes, connections: int, seconds: float) -> Look:
    pids = processes_of(daemon)
    uvloop.run(load(daemon.grpc, message, connections, seconds / 5))
    before = {pid: cpu_seconds(pid) for pid in pids}
    done, took = uvloop.run(load(daemon.grpc, message, connections, seconds))
    spent = {pid: cpu_seconds(pid) - before[pid] for pid in pids}
    workers = [spent[pid] for pid in pids[1:]] or [1.0]
    # By their CPU time, which is equal for all requests of one model.
    share = max(workers) / sum(workers) if sum(workers) else 1.0
    return Look(model, max(1, len(pids) - 1), connections, done / took, sum(spent.values()) / done * 1e6, share)


def bare_echo(seconds: float) -> float:
    """Microseconds of CPU a request of the minimal server, under the same load."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bare_echo", "64"], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            target = f"127.0.0.1:{int(server.stdout.readline())}"
            uvloop.run(load(target, bytes(64), 4, seconds / 5))
            before = cpu_seconds(server.pid)
            done, _ = uvloop.run(load(target, bytes(64), 4, seconds))
            return (cpu_seconds(server.pid) - before) / done * 1e6
        finally:
            server.terminate()


@contextmanager
def daemons() -> Iterator[Mapping[int, Daemon]]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder) / "models"
        models.save(models.identity(DType.INT64, [-1]), root, "echo")
        models.save(echo_models.steps(), root, "steps", settings="[queue]\nmax_length = 1024\n")
        yield {
            count: stack.enter_context(
                Daemon(root, "--cache-dir", f"{folder}/cache", "--preflight", "off", "--workers", str(count))
            )
            for count in PROCESSES
        }


def measure(rounds: int, seconds: float) -> list[Look]:
    asked = {
        "echo": request("echo", {"x": np.arange(8)}).SerializeToString(),
        "steps": request("steps", {"steps": np.array(STEPS, np.int32)}).SerializeToString(),
    }
    looks = []
    with daemons() as running:
        for number in range(rounds):
            for model, message in asked.items():
                for connections in CONNECTIONS:
                    order = PROCESSES if number % 2 == 0 else PROCESSES[::-1]
                    looks += [looked_at(running[count], model, message, connections, seconds) for count in order]
    return looks


def medians(looks: list[Look]) -> list[Look]:
    keys = dict.fromkeys((look.model, look.processes, look.connections) for look in looks)
    found = []
    for key in keys:
        same = [look for look in looks if (look.model, look.processes, look.connections) == key]
        found.append(
            Look(*key, *(statistics.median(getattr(look, name) for look in same) for name in Look.__slots__[3:]))
        )
    return found


def report(found: list[Look], hops: list[hop.Hop], costs: Costs) -> None:
    print(f"{'model':>6} {'processes':>9} {'connections':>11} {'1/s':>7} {'CPU us':>7} {'share':>6}")
    for look in found:
        print(
            f"{look.model:>6} {look.processes:9} {look.connections:11} {look.rate:7.0f} {look.cpu:7.0f} "
            f"{look.share:6.2f}"
        )
    print("\nbusiest worker's share by chance, times the workers (1.00 is even)")
    print(f"{'workers':>8}" + "".join(f"{n:>7} conn" for n in (1, 2, 4, 8, 32, 128)))
    for workers in (2, 4, 8):
        print(f"{workers:8}" + "".join(f"{busiest(workers, n, 2000) * workers:12.2f}" for n in (1, 2, 4, 8, 32, 128)))
    print(f"\n{'hop':>14} {'bytes':>7} {'in flight':>9} {'p50 us':>7} {'front us':>8} {'engine us':>9}")
    for one in hops:
        print(
            f"{one.kind:>14} {one.nbytes:7} {one.in_flight:9} {one.p50:7.0f} {one.front_cpu:8.1f} {one.engine_cpu:9.1f}"
        )
    print(f"\ncosts of a request: {costs}")
    print(
        "requests a second that 16 and 64 cores give, by service time: one process, workers of 16 cores, front process"
    )
    for service in SERVICE_TIMES:
        row = f"{service * 1000:7.1f} ms, pays from {costs.pays_from(service):5.1f} cores:"
        for cores in (16, 64):
            count = max(2, cores // 16)
            row += (
                f"{costs.one(service, cores):9.0f}{costs.workers(service, cores, count):9.0f}"
                f"{costs.front_process(service, cores, count):9.0f} |"
            )
        print(row)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--out", type=Path, help="folder for workers.json")
    arguments = parser.parse_args()
    looks = measure(arguments.rounds, arguments.seconds)
    found = medians(looks)
    hops = [
        hop.measured(kind, nbytes, in_flight, arguments.seconds)
        for kind in hop.KINDS
        for nbytes in (1024, 600_000)
        for in_flight in (1, hop.SLOTS)
    ]
    by = {(look.model, look.processes, look.connections): look for look in found}
    shared = next(one for one in hops if one.kind == "shared memory" and one.nbytes == 1024 and one.in_flight > 1)
    costs = Costs(by["echo", 1, 4].cpu, bare_echo(arguments.seconds), shared.front_cpu, shared.engine_cpu)
    report(found, hops, costs)
    one, two = by["steps", 1, 32], by["steps", 2, 32]
    ratios = {"throughput": two.rate / one.rate, "CPU a request": two.cpu / one.cpu}
    good = ratios["throughput"] >= THROUGHPUT_BAR and ratios["CPU a request"] <= CPU_BAR
    print(
        f"\ntwo workers by one process, {one.model} over 32 connections: "
        + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        + f": {'kept' if good else 'MISSED'}"
    )
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        result = {"looks": list(map(asdict, looks)), "hops": list(map(asdict, hops)), "costs": asdict(costs)}
        (arguments.out / "workers.json").write_text(json.dumps({**result, "ratios": ratios}, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
