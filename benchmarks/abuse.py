"""Measures the daemon's memory and a well-behaved client's latency next to hostile clients, and prints both.

    python -m benchmarks.abuse

The hostile clients hold idle connections and open streams, send one byte a second (before the preface and within a
request), headers too large and without end, and declare tensors far larger than what they send. The benchmark starts
its own daemon with default limits.
"""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import grpc
import numpy as np
from tests.system import echo_models, hostile_clients
from tests.system.daemon import Daemon
from tests.system.hostile_clients import DATA, END_HEADERS, HEADERS, WellBehaved, frame
from tests.system.memory import Growth
from tests.system.wire import connect, echo, method, outcome, request

INFER = b"/inference.GRPCInferenceService/ModelInfer"
Abuse = Callable[[str], Awaitable[str]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--slow", type=int, default=2000, help="connections that send a byte a second")
    parser.add_argument("--seconds", type=float, default=30)
    given = parser.parse_args(arguments)
    files = hostile_clients.raise_file_limit()
    print(f"open files a process may have here: {files}")
    with tempfile.TemporaryDirectory() as folder:
        repository = echo_models.write(Path(folder) / "repository")
        with Daemon(repository, "--cache-dir", str(Path(folder) / "cache")) as daemon:
            failures = asyncio.run(_all(daemon, given))
        ended = daemon.stop()
    print(f"failed calls of the well-behaved client: {failures}; exit status of the daemon: {ended}")
    return 1 if failures or ended else 0


async def _all(daemon: Daemon, given: argparse.Namespace) -> int:
    failures = await _during(daemon, "nothing", _nothing)
    failures += await _during(daemon, "idle connections", lambda a: _idle(a, given.connections, given.seconds))
    failures += await _during(daemon, "open streams", lambda a: _streams(a, given.streams, given.seconds))
    before = (b"", hostile_clients.PREFACE)
    headers = frame(HEADERS, END_HEADERS, 1, hostile_clients.call_headers(INFER))
    within = (hostile_clients.GREETING + headers, frame(DATA, 0, 1, bytes(4096)))
    failures += await _during(daemon, "connections that say nothing", lambda a: _silent(a, given.slow, given.seconds))
    for what, (first, slowly) in (("before the preface", before), ("within a request", within)):
        failures += await _during(
            daemon,
            f"a byte a second {what}",
            lambda a, f=first, s=slowly: _slow(a, given.slow, given.seconds, f, s),  # type: ignore[misc]
        )
    failures += await _during(daemon, "headers of 1 MiB", _large_headers)
    failures += await _during(daemon, "headers without end", _endless_headers)
    return failures + await _during(daemon, "2 GiB declared, 10 bytes sent", _declared)


async def _during(daemon: Daemon, what: str, abuse: Abuse) -> int:
    growth = Growth(daemon.process.pid)
    async with connect(daemon.grpc) as channel:
        infer = method(channel, "ModelInfer")
        async with WellBehaved(lambda: infer(echo([1, 2, 3]), timeout=20)) as client:
            await client.progress()
            seen = await abuse(daemon.grpc)
            peak = growth.peak
            await client.progress()
    p50, p99, worst = np.percentile(client.seconds, [50, 99, 100]) * 1000
    print(
        f"{what:<34} {seen:<42} +{peak / 2**20:6.1f} MiB   {len(client.seconds):>6} answers, "
        f"p50 {p50:.1f} p99 {p99:.1f} worst {worst:.1f} ms, {len(client.failures)} failed",
        flush=True,
    )
    return len(client.failures)


async def _nothing(_: str) -> str:
    await asyncio.sleep(5)
    return ""


async def _idle(address: str, count: int, seconds: float) -> str:
    connections = await hostile_clients.connected(address, count)
    await asyncio.sleep(seconds)
    still = hostile_clients.still_open(connections)
    await hostile_clients.hang_up(connections)
    return f"{len(connections)} made, {still} still open"


async def _silent(address: str, count: int, seconds: float) -> str:
    connections = await hostile_clients.connected(address, count, b"")
    await asyncio.sleep(seconds)
    still = hostile_clients.still_open(connections)
    await hostile_clients.hang_up(connections)
    return f"{len(connections)} made, {still} still open"


async def _streams(address: str, count: int, seconds: float) -> str:
    async with connect(address) as channel:
        calls = [method(channel, "ModelStreamInfer")() for _ in range(count)]
        for call in calls:
            await call.write(echo([7]))
        answered = [bool((await call.read()).infer_response.raw_output_contents) for call in calls]
        await asyncio.sleep(seconds)
        for call in calls:
            call.cancel()
    return f"{sum(answered)} answered and left open"


async def _slow(address: str, count: int, seconds: float, first: bytes, slowly: bytes) -> str:
    connections = await hostile_clients.connected(address, count, first)
    await hostile_clients.trickle(connections, slowly, seconds)
    still = hostile_clients.still_open(connections)
    await hostile_clients.hang_up(connections)
    return f"{len(connections)} made, {still} still open"


async def _large_headers(address: str) -> str:
    codes: list[grpc.StatusCode] = []
    async with connect(address) as channel:
        live = method(channel, "ServerLive")
        for _ in range(50):
            code, _ = await outcome(live(b"", metadata=[("x", "y" * (1 << 20))]))
            codes.append(code)
    return f"{codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED)} of 50 refused"


async def _endless_headers(address: str) -> str:
    sent = [await hostile_clients.endless_headers(address, 64 << 20) for _ in range(10)]
    return f"10 times up to {max(sent) / 2**20:.0f} MiB"


async def _declared(address: str) -> str:
    message = request("echo", {"x": np.zeros(1, np.int64)})
    message.inputs[0].shape[:] = [1 << 28]
    message.raw_input_contents[0] = bytes(10)
    async with connect(address) as channel:
        infer = method(channel, "ModelInfer")
        codes = [(await outcome(infer(message)))[0] for _ in range(500)]
    return f"{codes.count(grpc.StatusCode.INVALID_ARGUMENT)} of 500 refused"


if __name__ == "__main__":
    sys.exit(main())
