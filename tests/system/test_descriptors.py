"""With few descriptors, calls on open connections and probes go on, however many connections are opened."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest

from inferd.tensors import DType
from tests import models
from tests.event_loop import until
from tests.system import hostile_clients
from tests.system.daemon import Daemon
from tests.system.prometheus import until as settled
from tests.system.series import scrape
from tests.system.wire import connect, method, request

pytestmark = pytest.mark.system

GOOD = request("m", {"x": np.zeros(4, np.float32)})


@pytest.mark.parametrize("files", [64, 256])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_probes_and_calls_go_on_with_few_descriptors(
    files: int, workers: str, tmp_path: Path, cache_dir: Path, figure: Callable[[str], None]
) -> None:
    hostile_clients.raise_file_limit()
    models.save(models.identity(DType.FP32, [-1]), tmp_path, "m")
    limited = ("sh", "-c", f'ulimit -n {files}; exec "$@"', "sh")
    with Daemon(tmp_path, "--cache-dir", str(cache_dir), "--workers", workers, under=limited) as daemon:
        [warning, *_] = daemon.events("few files may be open")
        assert warning["open_files"] == files
        assert warning["connections"] < files
        assert warning["max_connections"] == 16384

        async def crowded() -> int:
            async with connect(daemon.grpc) as channel:
                infer = method(channel, "ModelInfer")
                await infer(GOOD)
                calls = await hostile_clients.connected(daemon.grpc, 500)
                probes = await hostile_clients.connected(daemon.metrics, 100, b"GET /")
                await until(lambda: hostile_clients.still_open(calls) < int(workers) * files)
                for _ in range(20):
                    await infer(GOOD, timeout=30)
                for path in ("/healthz", "/readyz", "/metrics"):
                    assert (await asyncio.to_thread(daemon.get, path))[0] == 200
                left = hostile_clients.still_open(calls)
                series = await asyncio.to_thread(scrape, daemon)
                assert series.total("inferd_connections_limit") == int(workers) * warning["connections"]
                # With the test's own.
                counted = partial(connections_are, daemon, left + 1)
                await asyncio.to_thread(settled, counted, 60, daemon.log)
                await hostile_clients.hang_up([*calls, *probes])
                # There is room again.
                async with connect(daemon.grpc) as other:
                    await method(other, "ModelInfer")(GOOD, timeout=60, wait_for_ready=True)
                return left

        left = asyncio.run(crowded())
        figure(f"{files} files, {workers} workers: {left} of 500 connections stay, and all else goes on")
    assert daemon.stop() == 0


def connections_are(daemon: Daemon, count: int) -> bool:
    return scrape(daemon).total("inferd_connections") == count


def test_a_connection_too_many_is_closed_at_once_and_another_takes_its_place(tmp_path: Path, cache_dir: Path) -> None:
    models.save(models.identity(DType.FP32, [-1]), tmp_path, "m")
    with Daemon(tmp_path, "--cache-dir", str(cache_dir), "--max-connections", "3") as daemon:
        assert not daemon.events("few files may be open")

        async def one_more() -> None:
            three = await hostile_clients.connected(daemon.grpc, 3)
            async with connect(daemon.grpc) as channel:
                infer = method(channel, "ModelInfer")
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await infer(GOOD, timeout=30)
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
                assert hostile_clients.still_open(three) == 3
                await hostile_clients.hang_up(three)
                await infer(GOOD, timeout=60, wait_for_ready=True)

        asyncio.run(one_more())
