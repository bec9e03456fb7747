"""The limits of connections and tensors over the wire, set low; docs/limits.md lists them all."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from inferd.tensors import DType
from tests import models
from tests.engine import hostile_models
from tests.system import hostile_clients
from tests.system.daemon import Daemon
from tests.system.wire import OK, connect, echo, method, outcome, request

pytestmark = pytest.mark.system

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Callable[..., object]:
    repository = tmp_path_factory.mktemp("repository")
    models.save(models.identity(DType.INT64, [-1]), repository, "echo")

    @contextmanager
    def serve(*flags: str) -> Iterator[Daemon]:
        with Daemon(repository, "--cache-dir", str(cache_dir), *flags) as daemon:
            yield daemon
        assert daemon.stop() == 0, daemon.log()

    return serve


async def answers(address: str) -> bool:
    async with connect(address) as channel:
        return (await outcome(method(channel, "ModelInfer")(echo([1]))))[0] is OK


def test_connections_beyond_the_limit_are_closed_and_room_is_found_again(serving: Callable[..., object]) -> None:
    async def fill(address: str) -> None:
        within = await hostile_clients.connected(address, 4)
        beyond = await hostile_clients.connected(address, 3)
        await asyncio.wait_for(asyncio.gather(*(c.over.wait() for c in beyond)), 20)
        assert hostile_clients.still_open(within) == 4
        await hostile_clients.hang_up(within)
        while not await answers(address):
            pass

    with serving("--max-connections", "4") as daemon:
        asyncio.run(fill(daemon.grpc))


def test_an_idle_connection_is_closed_and_one_with_a_call_open_is_not(serving: Callable[..., object]) -> None:
    async def wait(address: str) -> None:
        async with connect(address) as channel:
            call = method(channel, "ModelStreamInfer")()
            await call.write(echo([1]))
            assert (await call.read()).infer_response.raw_output_contents
            [idle] = await hostile_clients.connected(address, 1)
            await asyncio.wait_for(idle.over.wait(), 30)
            await call.write(echo([2]))
            assert (await call.read()).infer_response.raw_output_contents
            await call.done_writing()

    with serving("--connection-idle-timeout", "1") as daemon:
        asyncio.run(wait(daemon.grpc))


def test_connections_that_reach_their_age_are_replaced_without_a_failed_call(serving: Callable[..., object]) -> None:
    async def call_for(address: str, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        [old] = await hostile_clients.connected(address, 1)
        async with connect(address) as channel:
            infer = method(channel, "ModelInfer")
            while loop.time() < end or not old.over.is_set():
                assert await outcome(infer(echo([1]), wait_for_ready=True)) == (OK, "")

    with serving("--connection-max-age", "1", "--connection-age-grace", "1") as daemon:
        asyncio.run(call_for(daemon.grpc, 4))


def test_calls_beyond_the_limit_of_one_connection_wait_at_the_client(serving: Callable[..., object]) -> None:
    async def fill(address: str) -> None:
        async with connect(address) as channel:
            first = method(channel, "ModelStreamInfer")()
            await first.write(echo([1]))
            await first.read()
            second = asyncio.ensure_future(_outcome(method(channel, "ModelInfer")(echo([2]))))
            assert await answers(address), "another connection is not held up"
            assert not second.done()
            await first.done_writing()
            assert (await second)[0] is OK

    async def _outcome(call: grpc.aio.Call) -> tuple[grpc.StatusCode, str]:
        return await outcome(call)

    with serving("--max-concurrent-streams", "1") as daemon:
        asyncio.run(fill(daemon.grpc))


def test_tensors_ids_and_headers_beyond_their_limits_are_refused_by_name(serving: Callable[..., object]) -> None:
    async def ask(address: str) -> None:
        async with connect(address) as channel:
            infer = method(channel, "ModelInfer")
            assert (await outcome(infer(echo(range(100)))))[0] is OK
            assert await outcome(infer(echo(range(101)))) == (
                INVALID,
                "model 'echo': input 'x' of shape [101] would be 101 elements; at most 100 are allowed",
            )
            code, said = await outcome(infer(request("echo", {"x": np.zeros(1, np.int64)}, "i" * 2000)))
            assert (code, said) == (
                INVALID,
                "model 'echo': the request's id has 2000 characters; at most 1024 are allowed",
            )
            code, _ = await outcome(infer(echo([1]), metadata=[("x", "y" * 2000)]))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        async with connect(address) as channel:
            stream = method(channel, "ModelStreamInfer")()
            await stream.write(request("echo", {"x": np.zeros(1, np.int64)}, "i" * 20_000))
            answer = await stream.read()
            assert answer.error_message.startswith("[INVALID_ARGUMENT]")
            assert len(answer.infer_response.id) == 1024
            await stream.done_writing()

    with serving("--max-tensor-elements", "100", "--max-metadata-bytes", "1024") as daemon:
        asyncio.run(ask(daemon.grpc))


def test_models_that_would_end_the_daemon_are_broken_and_the_others_are_served(tmp_path: Path, cache_dir: Path) -> None:
    models.save(models.identity(DType.INT64, [-1]), tmp_path, "echo")
    models.save(hostile_models.divides_by_zero(), tmp_path, "zero")
    models.save(hostile_models.reads_out_of_bounds(), tmp_path, "bounds")
    models.save(hostile_models.fills_memory(), tmp_path, "memory")
    models.save(hostile_models.deep(20_000), tmp_path, "deep")
    limits = ("--preflight-memory-bytes", str(1 << 30), "--preflight-timeout", "15")
    with Daemon(tmp_path, "--cache-dir", str(cache_dir), "--preflight", "on", *limits) as daemon:
        assert asyncio.run(answers(daemon.grpc))
        said = {event["model"]: event["problem"] for event in daemon.events("model load failed")}
        assert daemon.wait_for("ready")["broken"] == 4
    assert daemon.stop() == 0, daemon.log()
    start = "model '{}' version 1 failed to load: "
    crashed = "the preflight process crashed ({})"
    assert said == {
        "zero": start.format("zero") + crashed.format("SIGFPE"),
        "bounds": start.format("bounds") + crashed.format("SIGSEGV"),
        "memory": start.format("memory") + "it needs more memory than the 1073741824 bytes of preflight_memory_bytes",
        "deep": start.format("deep") + "it took longer than 15 s (preflight_timeout)",
    }


def test_a_signal_while_a_model_is_tried_ends_the_trial_and_the_daemon(tmp_path: Path, cache_dir: Path) -> None:
    models.save(hostile_models.deep(20_000), tmp_path, "deep")
    daemon = Daemon(tmp_path, "--cache-dir", str(cache_dir), "--preflight", "on")
    try:
        while not (children := _children(daemon.process.pid)):
            assert daemon.process.poll() is None, daemon.log()
        assert daemon.stop() == 0, daemon.log()
    finally:
        if daemon.process.poll() is None:
            daemon.kill()
    assert [child for child in children if Path(f"/proc/{child}/cmdline").exists()] == []


def _children(process: int) -> list[str]:
    found: list[str] = []
    for task in Path(f"/proc/{process}/task").iterdir():
        try:
            found += (task / "children").read_text().split()
        except OSError:
            continue
    return found
