"""One of everything that clients and operators do to a daemon, by chance, again and again; as a process of its own.

    python -m tests.system.bad_days GRPC METRICS REPOSITORY PID SEED [THING]

Writes the name of each thing to its output when it is done, until it is ended; with THING, that one again and again.
"""

import asyncio
import http.client
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random

import grpc
import numpy as np

from inferd._pb import open_inference_pb2 as pb
from inferd.transport import http2
from tests.system import hostile_clients
from tests.system.hostile_clients import DATA, END_HEADERS, GREETING, HEADERS, call_headers, frame
from tests.system.wire import connect, method, request

PAUSE = 3.0
"""Seconds between two."""
OPEN = ("ServerLive", "ModelReady", "ModelInfer", "ModelStreamInfer")
SERVICE = "/inference.GRPCInferenceService"
MIB = 1 << 20

Thing = Callable[["Target", Random], Awaitable[None]]


class Target:
    """The daemon: HOST:PORT of its ports, its repository and its process."""

    def __init__(self, address: str, metrics: str, repository: Path, pid: int) -> None:
        self.address, self.metrics, self.repository, self.pid = address, metrics, repository, pid


async def half_sent(target: Target, chance: Random) -> None:
    """Messages that are announced, begun, and left."""
    path = f"{SERVICE}/{chance.choice(OPEN)}".encode()
    headers = frame(HEADERS, END_HEADERS, 1, call_headers(path))
    begun = b"\0" + (60 * MIB).to_bytes(4, "big") + bytes(16000)
    made = await hostile_clients.connected(target.address, 50, GREETING + headers + frame(DATA, 0, 1, begun))
    await asyncio.sleep(1)
    await hostile_clients.hang_up(made)


async def resets(target: Target, chance: Random) -> None:
    """A flood of calls that are reset at once."""
    headers, cancelled = http2.call_headers(f"{SERVICE}/{chance.choice(OPEN)}"), (8).to_bytes(4, "big")
    flood = b"".join(frame(HEADERS, END_HEADERS, n, headers) + frame(3, 0, n, cancelled) for n in range(1, 40_001, 2))
    await hostile_clients.answered(target.address, GREETING + flood, 1.0)


async def pings(target: Target, _: Random) -> None:
    """A flood of pings."""
    await hostile_clients.answered(target.address, GREETING + frame(6, 0, 0, b"12345678") * 20_000, 1.0)


async def headers(target: Target, _: Random) -> None:
    """Headers without end."""
    await hostile_clients.endless_headers(target.address, 4 * MIB)


async def garbage(target: Target, chance: Random) -> None:
    """What is no HTTP/2."""
    await hostile_clients.answered(target.address, chance.randbytes(10_000), 1.0)


async def connections(target: Target, _: Random) -> None:
    """Connections that do nothing."""
    made = await hostile_clients.connected(target.address, 300)
    await asyncio.sleep(1)
    await hostile_clients.hang_up(made)


async def no_message(target: Target, chance: Random) -> None:
    """Calls that end without a message, or within it."""
    for last in (b"", b"\0", b"\0\0\0\0\x64abc"):
        headers = frame(HEADERS, END_HEADERS, 1, call_headers(f"{SERVICE}/{chance.choice(OPEN)}".encode()))
        await hostile_clients.answered(target.address, GREETING + headers + frame(DATA, 1, 1, last), 0.5)


async def long_request(target: Target, chance: Random) -> None:
    """Requests that are as long as they may be, of many parts."""
    part = chance.choice([b"\x2a\0", b"\x32\0", b"\x3a\0", b"\xf8\x7f\0", b"\x0a\x02ab"])
    await sent(target, b"\x0a\x03bad" + part * (8 * MIB // len(part)))


async def strings(target: Target, chance: Random) -> None:
    """More strings than may be."""
    count = chance.choice([1 << 14, 1 << 20])
    message = pb.ModelInferRequest(model_name="text", raw_input_contents=[bytes(4 * count)])
    message.inputs.add(name="x", datatype="BYTES", shape=[count])
    await sent(target, message.SerializeToString())


async def huge_response(target: Target, chance: Random) -> None:
    """A small request for a huge response."""
    count = np.array([chance.choice([1, 100]) << 20], np.int64)
    await sent(target, request("huge", {"x": np.ones(1, np.float32), "to": count}).SerializeToString())


async def shapes(target: Target, chance: Random) -> None:
    """Shapes that were never seen."""
    async with connect(target.address) as channel:
        infer = method(channel, "ModelInfer")
        for _ in range(20):
            size = (1, 3, chance.randint(8, 60), chance.randint(8, 60))
            with suppress(grpc.aio.AioRpcError):
                await infer(request("shapes", {"x": np.zeros(size, np.float32)}), timeout=10)


async def slow_reader(target: Target, _: Random) -> None:
    """Responses that are asked for and not read."""
    message = request("huge", {"x": np.ones(1, np.float32), "to": np.array([MIB], np.int64)})
    async with connect(target.address) as channel:
        call = method(channel, "ModelStreamInfer")()
        for _ in range(10):
            await call.write(message)
        await asyncio.sleep(1)
        call.cancel()


async def bad_accept(target: Target, chance: Random) -> None:
    """A scrape with headers that mean nothing."""
    connection = http.client.HTTPConnection(target.metrics, timeout=10)
    try:
        accept = chance.choice(["application/openmetrics-text;version=x;q=a", ";;;", "*/*;q=9" * 1000, "text/plain;q="])
        connection.request("GET", "/metrics", headers={"Accept": accept})
        connection.getresponse().read()
    finally:
        connection.close()


async def pipe_in_repository(target: Target, chance: Random) -> None:
    """A model whose file is a pipe, or sparse and huge, and a reload that finds it."""
    folder = target.repository / "odd" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    odd = folder / "model.onnx"
    odd.unlink(missing_ok=True)
    if chance.random() < 0.5:
        os.mkfifo(odd)
    else:
        with odd.open("wb") as sparse:
            sparse.truncate(100 << 30)
    os.kill(target.pid, signal.SIGHUP)
    await asyncio.sleep(1)
    odd.unlink()


async def half_a_scrape(target: Target, _: Random) -> None:
    """Connections to the metrics port that never end their request."""
    host, _, port = target.metrics.rpartition(":")
    made = [socket.create_connection((host, int(port)), 10) for _ in range(80)]
    for connection in made:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost:")
    await asyncio.sleep(1)
    for connection in made:
        connection.close()


async def sent(target: Target, message: bytes) -> None:
    """``message`` as an inference, whatever becomes of it."""
    with suppress(grpc.aio.AioRpcError):
        async with connect(target.address) as channel:
            await method(channel, "ModelInfer")(message, timeout=30)


THINGS: tuple[Thing, ...] = (
    half_sent,
    resets,
    pings,
    headers,
    garbage,
    connections,
    no_message,
    long_request,
    strings,
    huge_response,
    shapes,
    slow_reader,
    bad_accept,
    pipe_in_repository,
    half_a_scrape,
)


async def _run(target: Target, chance: Random, things: Sequence[Thing]) -> None:
    while True:
        thing = chance.choice(things)
        # The daemon may hang up in the middle of it.
        with suppress(OSError, http.client.HTTPException):
            await thing(target, chance)
        print(thing.__name__, flush=True)
        await asyncio.sleep(PAUSE)


if __name__ == "__main__":
    hostile_clients.raise_file_limit()
    at = Target(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
    wanted = [thing for thing in THINGS if thing.__name__ in sys.argv[6:]]
    asyncio.run(_run(at, Random(int(sys.argv[5])), wanted or THINGS))
