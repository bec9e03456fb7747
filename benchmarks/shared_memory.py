"""Measures the server CPU of an inference with inputs of 600 KB: over TCP, and copied from or used in shared memory.

    python -m benchmarks.shared_memory --rounds 5 --out build/bench

Two models take [1,3,224,224] FP32: `reduces` returns one number, `negates` as much as it got. Each round sends the same
requests in every way one after the other, with a fixed number in flight, and reads the CPU time of the server's process
from the kernel; the order rotates from round to round. Prints microseconds an inference and each way's ratio to TCP, as
medians over the rounds with minimum and maximum, and writes shared_memory.json.
"""

import argparse
import asyncio
import json
import os
import secrets
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop
from tests import models
from tests.shared_memory.objects import SharedObject, shared_object
from tests.system.daemon import Daemon
from tests.system.wire import method

from benchmarks.open_loop import METHOD, connected
from inferd._pb import open_inference_pb2 as pb
from inferd.engine.runtime import ov
from inferd.tensors import DType

SHAPE = (1, 3, 224, 224)
NBYTES = int(np.prod(SHAPE)) * 4
MODELS = {"reduces": 4, "negates": NBYTES}
"""Bytes of the response by model."""
WAYS = ("tcp", "copy", "mapped")
PLACE = 2 * -(-NBYTES // 4096) * 4096
"""Each request in flight has its own memory for input and output."""
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Figure:
    """One way of one model, round by round: microseconds of server CPU an inference, and their ratio to TCP's."""

    model: str
    way: str
    rounds: list[float]
    ratios: list[float]

    def line(self) -> str:
        median, spread = statistics.median(self.rounds), [min(self.ratios), max(self.ratios)]
        return (
            f"{self.model:8} {self.way:7} {median:7.0f} us an inference, {statistics.median(self.ratios):.2f} of TCP "
            f"({spread[0]:.2f} to {spread[1]:.2f})"
        )


@dataclass(frozen=True, slots=True)
class Server:
    """A daemon and how to send it requests."""

    daemon: Daemon
    senders: Sequence[grpc.aio.UnaryUnaryMultiCallable]

    def cpu(self) -> float:
        """Its CPU time in seconds."""
        fields = Path(f"/proc/{self.daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    async def send(self, requests: Sequence[bytes], count: int) -> None:
        """Send ``count`` requests, with one of each of ``requests`` in flight; these differ in their memory."""
        left = iter(range(count))

        async def one(place: int, request: bytes) -> None:
            send = self.senders[place % len(self.senders)]
            for _ in left:
                await send(request)

        async with asyncio.TaskGroup() as group:
            for place, request in enumerate(requests):
                group.create_task(one(place, request))

    async def measure(self, requests: Sequence[bytes], count: int) -> float:
        """Microseconds of CPU an inference."""
        before = self.cpu()
        await self.send(requests, count)
        return (self.cpu() - before) / count * 1e6


def reduces() -> "ov.Model":
    """``x`` -> ``y``, the largest of its elements."""
    op = ov.opset13
    x = op.parameter(ov.PartialShape(list(SHAPE)), ov.Type.f32)
    x.output(0).set_names({"x"})
    y = op.reshape(op.reduce_max(x, op.constant([0, 1, 2, 3]), False), op.constant([1]), False)
    y.output(0).set_names({"y"})
    return ov.Model([op.result(y)], [x], "reduces")


def requests(model: str, in_flight: int, region: str = "") -> list[bytes]:
    """A request for each in flight, with its tensors in ``region`` or in the message."""
    made = []
    for place in range(in_flight):
        message = pb.ModelInferRequest(model_name=model)
        item = message.inputs.add(name="x", datatype=DType.FP32.wire, shape=SHAPE)
        if region:
            _place(item.parameters, region, place * PLACE, NBYTES)
            _place(message.outputs.add(name="y").parameters, region, place * PLACE + PLACE // 2, MODELS[model])
        else:
            message.raw_input_contents.append(np.zeros(SHAPE, np.float32).tobytes())
        made.append(message.SerializeToString())
    return made


def _place(parameters: Any, region: str, at: int, size: int) -> None:
    parameters["shared_memory_region"].string_param = region
    parameters["shared_memory_offset"].int64_param = at
    parameters["shared_memory_byte_size"].int64_param = size


@contextmanager
def served(repository: Path, cache: Path) -> Iterator[dict[str, Daemon]]:
    """A daemon for each way."""
    with ExitStack() as stack:
        yield {
            way: stack.enter_context(
                Daemon(repository, "--cache-dir", str(cache), "--shared-memory", "off" if way == "tcp" else way)
            )
            for way in WAYS
        }


async def register(channel: grpc.aio.Channel, region: str, memory: SharedObject, size: int) -> None:
    asked = pb.SystemSharedMemoryRegisterRequest(name=region, key=memory.key, byte_size=size)
    await method(channel, "SystemSharedMemoryRegister")(asked)


async def compare(daemons: dict[str, Daemon], rounds: int, count: int, in_flight: int) -> list[Figure]:
    seen: dict[tuple[str, str], list[float]] = {(model, way): [] for model in MODELS for way in WAYS}
    size = in_flight * PLACE
    async with AsyncExitStack() as stack:
        servers, asked = {}, {}
        for way, daemon in daemons.items():
            channels = await connected(stack, daemon.grpc)
            servers[way] = Server(daemon, [channel.unary_unary(METHOD) for channel in channels])
            region = ""
            if way != "tcp":
                region = f"bench-{secrets.token_hex(6)}"
                # A shared memory object belongs to one client, so each daemon gets its own.
                await register(channels[0], region, stack.enter_context(shared_object(size)), size)
            for model in MODELS:
                asked[model, way] = requests(model, in_flight, region)
                await servers[way].send(asked[model, way], count // 4 + in_flight)
        for number in range(rounds):
            for model in MODELS:
                for place in range(len(WAYS)):
                    way = WAYS[(number + place) % len(WAYS)]
                    seen[model, way].append(await servers[way].measure(asked[model, way], count))
    return [
        Figure(model, way, took, [one / other for one, other in zip(took, seen[model, "tcp"], strict=True)])
        for (model, way), took in seen.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=1000, help="requests of each way and round")
    parser.add_argument("--in-flight", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "models"
        models.save(reduces(), repository, "reduces")
        models.save(models.negative(SHAPE), repository, "negates")
        with served(repository, Path(folder) / "cache") as daemons:
            figures = uvloop.run(compare(daemons, given.rounds, given.count, given.in_flight))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "shared_memory.json").write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")
    for figure in figures:
        print(figure.line())
    return 0


if __name__ == "__main__":
    sys.exit(main())
