"""A daemon in a control group of 1 GiB lives on, and serves, whatever is sent to it at once."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from inferd.rpc.gate import SERVICE
from inferd.tensors import DType
from tests import models
from tests.cgroups import under_memory_limit
from tests.system.daemon import Daemon
from tests.system.hostile_clients import WellBehaved, cut_short
from tests.system.memory import Growth
from tests.system.prometheus import until
from tests.system.wire import request

pytestmark = pytest.mark.system

GROUP = 1 << 30
# What is mapped from files is resident, and the group's only as far as this process was the first to read it.
FILES = 128 << 20
HALF_SENT, SENT, ANNOUNCED = 15, 59 << 20, 60 << 20
LIVE, READY, INFER, STREAM = (
    f"/{SERVICE}/{name}" for name in ("ServerLive", "ModelReady", "ModelInfer", "ModelStreamInfer")
)
WATCH = "/grpc.health.v1.Health/Watch"
UNLIMITED = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]
GOOD = request("m", {"x": np.zeros(4, np.float32)}).SerializeToString()
LARGE = request("m", {"x": np.zeros(4 << 20, np.float32)}).SerializeToString()
REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    repository = tmp_path_factory.mktemp("models")
    models.save(models.identity(DType.FP32, [-1]), repository, "m")
    with under_memory_limit(GROUP) as under:
        flags = ["--cache-dir", str(cache_dir), "--message-timeout", "12s"]
        # Its default in such a group.
        flags += [] if under else ["--max-memory-bytes", str(GROUP * 3 // 4)]
        with Daemon(repository, *flags, under=under) as started:
            yield started


async def code(address: str, method: str, message: bytes) -> grpc.StatusCode:
    """How a call ends, on a connection of its own."""
    async with grpc.aio.insecure_channel(address, UNLIMITED) as channel:
        if method == STREAM:
            call: grpc.aio.Call = channel.stream_stream(method)(iter([message]))
        elif method == WATCH:
            call = channel.unary_stream(method)(message)
        else:
            call = channel.unary_unary(method)(message)
        return await call.code()


def within(daemon: Daemon, abuse: "asyncio._CoroutineLike[list[grpc.StatusCode]]") -> tuple[list[grpc.StatusCode], int]:
    """The codes of ``abuse``, and the daemon's peak of memory; another client's calls are answered meanwhile."""
    growth = Growth(daemon.process.pid)

    async def run() -> list[grpc.StatusCode]:
        async with grpc.aio.insecure_channel(daemon.grpc) as channel:
            infer = channel.unary_unary(INFER)
            async with WellBehaved(lambda: infer(GOOD, timeout=60)) as good:
                codes = await abuse
                await good.progress(5)
            assert not good.failures
        return codes

    codes = asyncio.run(run())
    assert daemon.process.poll() is None
    return codes, growth.most


@pytest.mark.parametrize("method", [LIVE, READY, WATCH, INFER, STREAM])
def test_half_sent_messages_are_turned_away(method: str, daemon: Daemon, figure: Callable[[str], None]) -> None:
    async def half_sent() -> list[grpc.StatusCode]:
        async with cut_short(daemon.grpc, SENT) as address, asyncio.timeout(120):
            calls = [asyncio.ensure_future(code(address, method, bytes(ANNOUNCED))) for _ in range(HALF_SENT)]
            if method == STREAM:
                # Streams may take their time: only those that there is no memory for end.
                await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                ended = [call.result() for call in calls if call.done()]
                for call in calls:
                    call.cancel()
                return ended
            return await asyncio.gather(*calls)

    codes, peak = within(daemon, half_sent())
    # grpc.aio says INTERNAL where a stream ends while it writes.
    allowed = {LIVE: {grpc.StatusCode.OK}, STREAM: {REFUSED, grpc.StatusCode.INTERNAL}}
    assert set(codes) <= allowed.get(method, {REFUSED, grpc.StatusCode.DEADLINE_EXCEEDED})
    assert method in (LIVE, STREAM) or REFUSED in codes
    assert peak < GROUP + FILES
    figure(f"{HALF_SENT} half-sent messages of 59 MiB to {method}: at most {peak >> 20} MiB of memory")


def test_messages_on_their_way_have_a_budget(tmp_path: Path, cache_dir: Path, figure: Callable[[str], None]) -> None:
    models.save(models.identity(DType.FP32, [-1]), tmp_path, "m")
    with Daemon(tmp_path, "--cache-dir", str(cache_dir), "--max-incoming-bytes", "64MiB") as alone:

        async def half_sent() -> list[grpc.StatusCode]:
            async with cut_short(alone.grpc, SENT) as address, asyncio.timeout(120):
                calls = [asyncio.ensure_future(code(address, READY, bytes(ANNOUNCED))) for _ in range(HALF_SENT)]
                while sum(call.done() for call in calls) < HALF_SENT - 1:
                    await asyncio.wait([call for call in calls if not call.done()], return_when=asyncio.FIRST_COMPLETED)
                ended = [call.result() for call in calls if call.done()]
                for call in calls:
                    call.cancel()
                return ended

        before = Growth(alone.process.pid).resident
        codes, peak = within(alone, half_sent())
        assert set(codes) == {REFUSED}
        assert peak - before < 256 << 20
    figure(f"{HALF_SENT} half-sent messages of 59 MiB with a budget of 64 MiB: +{(peak - before) >> 20} MiB at most")


def test_large_requests_at_once_are_answered_or_refused(daemon: Daemon, figure: Callable[[str], None]) -> None:
    async def at_once() -> list[grpc.StatusCode]:
        async with asyncio.timeout(120):
            return await asyncio.gather(*(code(daemon.grpc, INFER, LARGE) for _ in range(80)))

    codes, peak = within(daemon, at_once())
    assert set(codes) <= {grpc.StatusCode.OK, REFUSED}
    assert grpc.StatusCode.OK in codes
    assert peak < GROUP + FILES
    figure(f"80 requests of 16 MiB at once: {codes.count(REFUSED)} refused, at most {peak >> 20} MiB of memory")


def test_memory_comes_back(daemon: Daemon) -> None:
    growth = Growth(daemon.process.pid)
    until(lambda: growth.resident < GROUP // 3, 60, daemon.log)
