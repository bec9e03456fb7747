"""The computing echo as the comparison starts it, and the servers of the comparison that need no installation."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import uvloop
from benchmarks.open_loop import METHOD
from benchmarks.peers import workloads
from benchmarks.peers.clients import STREAM, tensor_of_response, tensor_of_stream
from benchmarks.peers.results import COMPUTING_ECHO, ECHO, INFERD, INFERD_MAPPED, Result
from benchmarks.peers.rounds import Plan, Rounds
from benchmarks.peers.servers import KINDS, Budget, Kind, model_settings
from benchmarks.peers.workloads import Workload

from tests import models
from tests.event_loop import on_loop
from tests.system.wire import connect, request

KIND = {kind.name: kind for kind in KINDS}
THREADS = 2


def budget(tmp_path: Path) -> Budget:
    return Budget(THREADS, tmp_path, (), print)


def workload(folder: Path, name: str, columns: int) -> Workload:
    """A model that returns the negative of its input, ``columns`` numbers."""
    models.save(models.negative([1, columns]), folder, name)
    array = np.arange(columns, dtype=np.float32).reshape(1, columns)
    message = request(name, {"x": array}).SerializeToString()
    return Workload(name, folder / name / "1" / "model.xml", "x", "y", array, -array, message, array.tobytes())


@contextmanager
def echo(tmp_path: Path, *served: Workload) -> Iterator[str]:
    """HOST:PORT of an echo that computes ``served``."""
    kind = KIND[COMPUTING_ECHO]
    with ExitStack() as stack:
        yield kind.start(kind, budget(tmp_path), served, stack).targets[served[0].name]


def asked(name: str, columns: int, count: int) -> tuple[list[npt.NDArray[np.float32]], list[bytes]]:
    """``count`` different arrays, and the requests for them."""
    arrays = [np.full((1, columns), number, np.float32) for number in range(1, count + 1)]
    return arrays, [request(name, {"x": array}).SerializeToString() for array in arrays]


@on_loop
async def test_each_response_is_the_models_output_for_its_tensor(tmp_path: Path) -> None:
    # More requests than infer requests, to two models of different sizes.
    small, large = workload(tmp_path, "small", 3), workload(tmp_path, "large", 300_000)
    with echo(tmp_path, small, large) as target:
        async with connect(target) as channel:
            call = channel.unary_unary(METHOD)
            for name, columns in (("small", 3), ("large", 300_000)):
                arrays, requests = asked(name, columns, 20)
                answers = await asyncio.gather(*map(call, requests))
                for array, answer in zip(arrays, answers, strict=True):
                    assert np.array_equal(tensor_of_response(answer), -array.ravel())


@on_loop
async def test_a_stream_is_answered_in_its_order(tmp_path: Path) -> None:
    with echo(tmp_path, workload(tmp_path, "m", 1000)) as target:
        async with connect(target) as channel:
            call = channel.stream_stream(STREAM)()
            arrays, requests = asked("m", 1000, 20)
            for one in requests:
                await call.write(one)
            await call.done_writing()
            for array in arrays:
                assert np.array_equal(tensor_of_stream(await call.read()), -array.ravel())
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK


@on_loop
async def test_clients_that_leave_release_their_infer_requests(tmp_path: Path) -> None:
    with echo(tmp_path, workload(tmp_path, "m", 300_000)) as target:
        async with connect(target) as channel:
            arrays, requests = asked("m", 300_000, 20)
            for _ in range(2):
                calls = [channel.unary_unary(METHOD)(one) for one in requests]
                streamed = channel.stream_stream(STREAM)()
                await streamed.write(requests[0])
                await calls[0]
                for left in (*calls, streamed):
                    left.cancel()
            answers = await asyncio.gather(*(channel.unary_unary(METHOD)(one) for one in requests))
            assert np.array_equal(tensor_of_response(answers[-1]), -arrays[-1].ravel())


# -- as the comparison has it --------------------------------------------------------


def looked_at(tmp_path: Path, *kinds: Kind) -> tuple[list[Result], dict[str, str]]:
    """One short round of ``kinds`` with noop and magika, and what was skipped, with the reason."""
    names = ["noop", "magika"]
    made = workloads.make(names, tmp_path / "models", lambda name: model_settings(name, THREADS))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop, ExitStack() as stack:
        rounds = Rounds(loop, budget(tmp_path), made, print)
        rounds.start(kinds, stack)
        results = rounds.measure(Plan(1, 0.2, 0.1, with_benchmark_app=False))
    return results, rounds.missing


def test_the_echoes_are_asked_in_their_ways_and_their_threads_told_apart(tmp_path: Path) -> None:
    results, missing = looked_at(tmp_path, KIND[ECHO], KIND[COMPUTING_ECHO])

    assert missing == {}
    assert not [r for r in results if r.errors]
    levels = {(r.model, r.server, r.way): set[int]() for r in results}
    for r in results:
        levels[r.model, r.server, r.way].add(r.concurrency)
    bare = {(model, ECHO, way): {1, 8, 32} for model in ("noop", "magika") for way in ("unary", "stream")}
    assert levels == bare | {("magika", COMPUTING_ECHO, way): {1, 8} for way in ("unary", "stream")}
    for r in results:
        # With one request in flight a stream is idle, and its thread is unknown.
        if r.server == COMPUTING_ECHO and r.concurrency < THREADS:
            assert r.serving_cpu is None
        elif r.server == COMPUTING_ECHO and r.server_cpu:
            assert r.serving_cpu is not None
            assert r.serving_cpu < r.server_cpu / 2


@pytest.mark.system
def test_inferd_answers_over_a_stream_and_in_shared_memory_at_once(tmp_path: Path) -> None:
    results, missing = looked_at(tmp_path, KIND[INFERD], KIND[INFERD_MAPPED])

    assert missing == {}
    assert not [r for r in results if r.errors]
    asked_in = {(r.server, r.way) for r in results}
    assert asked_in == {(name, way.name) for name in (INFERD, INFERD_MAPPED) for way in KIND[name].ways}
    assert (INFERD_MAPPED, "stream, shared memory") in asked_in
