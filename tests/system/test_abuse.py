"""Hostile clients: their requests are refused or bounded, and all other clients are served throughout."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import grpc
import numpy as np
import pytest

from inferd._pb import open_inference_pb2 as pb
from tests.system import echo_models, hostile_clients
from tests.system.daemon import Daemon
from tests.system.hostile_clients import CONTINUATION, DATA, END_HEADERS, HEADERS, SETTINGS, WellBehaved, frame
from tests.system.memory import Growth
from tests.system.wire import connect, echo, method, outcome, request

pytestmark = pytest.mark.system

MEBIBYTE = 1 << 20
INFER = b"/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    hostile_clients.raise_file_limit()
    repository = echo_models.write(tmp_path_factory.mktemp("repository"))
    with Daemon(repository, "--cache-dir", str(cache_dir), "--max-message-bytes", str(MEBIBYTE)) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


def served_throughout(daemon: Daemon, abuse: Callable[[WellBehaved], "asyncio._CoroutineLike[None]"]) -> WellBehaved:
    """What a client of its own got while ``abuse`` went on: every answer, and the last after it was over."""

    async def both() -> WellBehaved:
        async with connect(daemon.grpc) as channel:
            infer = method(channel, "ModelInfer")
            async with WellBehaved(lambda: infer(echo([1, 2, 3]), timeout=20)) as client:
                await client.progress()
                await abuse(client)
                await client.progress()
        return client

    client = asyncio.run(both())
    assert client.failures == []
    assert daemon.process.poll() is None
    return client


def test_idle_connections_cost_little_and_delay_no_other_client(daemon: Daemon, figure: Callable[[str], None]) -> None:
    growth = Growth(daemon.process.pid)
    opened = 0

    async def abuse(client: WellBehaved) -> None:
        nonlocal opened
        connections = await hostile_clients.connected(daemon.grpc, 1000)
        await client.progress()
        opened = hostile_clients.still_open(connections)
        await hostile_clients.hang_up(connections)

    served_throughout(daemon, abuse)
    figure(f"{opened} idle connections: {growth.peak / MEBIBYTE:.0f} MiB")
    assert opened == 1000
    assert growth.peak < 200 * MEBIBYTE


def test_open_streams_cost_little_and_delay_no_other_client(daemon: Daemon, figure: Callable[[str], None]) -> None:
    growth = Growth(daemon.process.pid)

    async def abuse(client: WellBehaved) -> None:
        async with connect(daemon.grpc) as channel:
            calls = [method(channel, "ModelStreamInfer")() for _ in range(300)]
            for call in calls:
                await call.write(echo([7]))
            for call in calls:
                assert (await call.read()).infer_response.raw_output_contents
            await client.progress()
            for call in calls:
                call.cancel()

    served_throughout(daemon, abuse)
    figure(f"300 open streams: {growth.peak / MEBIBYTE:.0f} MiB")
    assert growth.peak < 200 * MEBIBYTE


@pytest.mark.parametrize(
    ("first", "slowly"),
    [
        (b"", hostile_clients.PREFACE),
        (
            hostile_clients.GREETING + frame(HEADERS, END_HEADERS, 1, hostile_clients.call_headers(INFER)),
            frame(DATA, 0, 1, bytes(4096)),
        ),
    ],
    ids=["before the preface", "within a request"],
)
def test_a_byte_a_second_delays_no_other_client(first: bytes, slowly: bytes, daemon: Daemon) -> None:
    growth = Growth(daemon.process.pid)

    async def abuse(client: WellBehaved) -> None:
        connections = await hostile_clients.connected(daemon.grpc, 200, first)
        await hostile_clients.trickle(connections, slowly, 2)
        await client.progress()
        await hostile_clients.hang_up(connections)

    served_throughout(daemon, abuse)
    assert growth.peak < 100 * MEBIBYTE


def test_headers_beyond_the_limit_are_refused_and_below_it_taken(daemon: Daemon) -> None:
    async def abuse(_: WellBehaved) -> None:
        async with connect(daemon.grpc) as channel:
            live = method(channel, "ServerLive")
            for _ in range(20):
                code, _ = await outcome(live(b"", metadata=[("x", "y" * 15_000)]))
                assert code is grpc.StatusCode.OK
                code, said = await outcome(live(b"", metadata=[("x", "y" * 20_000)]))
                assert (code, "metadata size" in said) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)

    served_throughout(daemon, abuse)


def test_endless_headers_cost_little_and_delay_no_other_client(daemon: Daemon, figure: Callable[[str], None]) -> None:
    growth = Growth(daemon.process.pid)
    sent: list[int] = []

    async def abuse(_: WellBehaved) -> None:
        sent.extend([await hostile_clients.endless_headers(daemon.grpc, 8 * MEBIBYTE) for _ in range(10)])

    served_throughout(daemon, abuse)
    figure(f"endless headers: {max(sent) / MEBIBYTE:.1f} MiB sent, {growth.peak / MEBIBYTE:.0f} MiB more memory")
    assert growth.peak < 50 * MEBIBYTE


def test_a_tensor_of_2_gib_declared_with_10_bytes_is_refused_by_name(daemon: Daemon) -> None:
    growth = Growth(daemon.process.pid)

    async def abuse(_: WellBehaved) -> None:
        async with connect(daemon.grpc) as channel:
            infer = method(channel, "ModelInfer")
            for _ in range(20):
                message = request("echo", {"x": np.zeros(1, np.int64)})
                message.inputs[0].shape[:] = [1 << 28]
                message.raw_input_contents[0] = bytes(10)
                said = await outcome(infer(message))
                assert said == (
                    grpc.StatusCode.INVALID_ARGUMENT,
                    "model 'echo': input 'x' of shape [268435456] would be 268435456 elements; at most 67108864 are "
                    "allowed",
                )

    served_throughout(daemon, abuse)
    assert growth.peak < 20 * MEBIBYTE


def test_lists_of_thousands_are_refused_before_they_are_looked_through(daemon: Daemon) -> None:
    async def abuse(_: WellBehaved) -> None:
        many = pb.ModelInferRequest(model_name="echo")
        for _ in range(100_000):
            many.outputs.add()
        inputs = pb.ModelInferRequest(model_name="echo")
        for _ in range(30_000):
            inputs.inputs.add(name="x", datatype="INT64", shape=[1]).contents.int64_contents.append(1)
        async with connect(daemon.grpc) as channel:
            infer = method(channel, "ModelInfer")
            good = echo([1])
            good.MergeFrom(many)
            for long in (good, inputs):
                assert await outcome(infer(long)) == (
                    grpc.StatusCode.INVALID_ARGUMENT,
                    "the request has more than 4096 fields without the contents of its inputs",
                )

    served_throughout(daemon, abuse)


def test_garbage_instead_of_http2_is_no_more_than_a_closed_connection(daemon: Daemon) -> None:
    chance = Random(0)
    greeting = hostile_clients.GREETING
    garbage = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        hostile_clients.PREFACE[:-3] + b"xxx",
        greeting + frame(SETTINGS, 0, 0, b"\0" * 5),
        greeting + frame(CONTINUATION, 0, 1, b""),
        greeting + frame(DATA, 0, 0, b"x"),
        greeting + frame(HEADERS, END_HEADERS, 1, b"\xff" * 64),
        greeting + frame(HEADERS, END_HEADERS, 2, hostile_clients.call_headers(INFER)),
        greeting + b"\xff\xff\xff" + bytes([DATA, 0]) + bytes(4),
        *(chance.randbytes(200) for _ in range(40)),
        *(greeting + frame(chance.randrange(16), chance.randrange(256), chance.randrange(4), chance.randbytes(40))
          for _ in range(150)),
        *(greeting + chance.randbytes(300) for _ in range(40)),
    ]  # fmt: skip

    async def abuse(_: WellBehaved) -> None:
        for start in range(0, len(garbage), 40):
            with suppress(OSError):
                await asyncio.gather(
                    *(hostile_clients.answered(daemon.grpc, data, 1.0) for data in garbage[start : start + 40])
                )

    served_throughout(daemon, abuse)
    assert [line for line in daemon.lines if "Traceback" in line] == []
