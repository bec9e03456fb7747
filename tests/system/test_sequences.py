"""Sequences over the wire: the server carries the state, keeps the order, and says what became of a sequence."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from inferd._pb import open_inference_pb2 as pb
from tests.engine import models
from tests.system.daemon import Daemon
from tests.system.wire import connect, method, request

pytestmark = pytest.mark.system

VAD = "silero-vad"
FRAMES = 120
SEQUENCES = 16

Frames = npt.NDArray[np.float32]


def frame(samples: Frames, sequence: int | str, number: int, last: int = FRAMES - 1) -> pb.ModelInferRequest:
    parameters = {"sequence_id": sequence, "sequence_start": number == 0, "sequence_end": number == last}
    return request(VAD, {"input": samples}, str(number), parameters)


@pytest.fixture(scope="module")
def signals() -> Frames:
    """[sequences, frames, 1, 576]: noise whose loudness differs, so that no sequence can pass for another."""
    chance = np.random.default_rng(3)
    loudness = np.linspace(0.05, 0.9, SEQUENCES).reshape(-1, 1, 1, 1)
    return (loudness * chance.standard_normal((SEQUENCES, FRAMES, 1, 576))).astype(np.float32)


@pytest.fixture(scope="module")
def expected(demo_repository: Path, signals: Frames) -> Frames:
    """[sequences, frames]: each sequence by itself through onnxruntime."""
    session = onnxruntime.InferenceSession(str(demo_repository / VAD / "1" / "model.onnx"))
    speech = np.zeros((SEQUENCES, FRAMES), np.float32)
    for sequence in range(SEQUENCES):
        state = np.zeros((2, 1, 128), np.float32)
        for number in range(FRAMES):
            probability, state = session.run(None, {"input": signals[sequence, number], "state": state})
            speech[sequence, number] = probability.item()
    return speech


def probability(answer: pb.ModelInferResponse) -> float:
    assert [output.name for output in answer.outputs] == ["output"]
    return float(np.frombuffer(answer.raw_output_contents[0], np.float32)[0])


async def over_a_stream(channel: grpc.aio.Channel, signal: Frames, sequence: int | str) -> list[float]:
    call = method(channel, "ModelStreamInfer")()

    async def send() -> None:
        for number in range(FRAMES):
            await call.write(frame(signal[number], sequence, number))
        await call.done_writing()

    sending = asyncio.create_task(send())
    answers = []
    async for answer in call:
        assert answer.error_message == ""
        assert answer.infer_response.id == str(len(answers))
        answers.append(probability(answer.infer_response))
    await sending
    return answers


async def one_by_one(channel: grpc.aio.Channel, signal: Frames, sequence: int | str) -> list[float]:
    infer = method(channel, "ModelInfer")
    return [probability(await infer(frame(signal[n], sequence, n))) for n in range(FRAMES)]


def live(daemon: Daemon, model: str = VAD) -> int:
    gauge = f'inferd_sequences{{model="{model}",version="1"}} '
    (line,) = [line for line in daemon.get("/metrics")[1].splitlines() if line.startswith(gauge)]
    return int(float(line.removeprefix(gauge)))


def test_many_sequences_side_by_side_are_each_what_they_are_alone(
    demo_server: Daemon, signals: Frames, expected: Frames, figure: Callable[[str], None]
) -> None:
    async def all_of_them() -> list[list[float]]:
        async with connect(demo_server.grpc) as channel:
            ways = [over_a_stream] * (SEQUENCES - 4) + [one_by_one] * 4
            # A number and the same number as text are two sequences.
            ids: list[int | str] = [1, "1", *range(2, SEQUENCES)]
            return await asyncio.gather(*(way(channel, signals[i], ids[i]) for i, way in enumerate(ways)))

    got = np.array(asyncio.run(all_of_them()), np.float32)
    worst = float(np.abs(got - expected).max())
    figure(f"silero-vad: {SEQUENCES} sequences of {FRAMES} frames side by side, off by at most {worst:.1e}")
    assert worst < 1e-4
    assert live(demo_server) == 0


def test_errors_name_the_sequence_and_what_became_of_it(demo_server: Daemon, signals: Frames) -> None:
    async def talk() -> list[tuple[str, str]]:
        said = []
        async with connect(demo_server.grpc) as channel:
            infer = method(channel, "ModelInfer")

            async def outcome(message: pb.ModelInferRequest) -> None:
                call = infer(message)
                said.append(((await call.code()).name, await call.details() or ""))

            await outcome(frame(signals[0, 0], 77, 1))
            await outcome(frame(signals[0, 0], 78, 0, last=0))
            await outcome(frame(signals[0, 0], 78, 1))
            carried = request(
                VAD,
                {"input": signals[0, 0], "state": np.zeros((2, 1, 128), np.float32)},
                parameters={"sequence_id": 79, "sequence_start": True},
            )
            await outcome(carried)
            await outcome(request("magika", {"bytes": np.zeros((1, 2048), np.int32)}, parameters={"sequence_id": 5}))
        return said

    assert asyncio.run(talk()) == [
        ("NOT_FOUND", "model 'silero-vad': sequence '77' is not known; begin with sequence_start"),
        ("OK", ""),
        ("NOT_FOUND", "model 'silero-vad': sequence '78' has ended; begin with sequence_start"),
        (
            "INVALID_ARGUMENT",
            "model 'silero-vad': input 'state' is state that the server carries in a sequence; leave it out",
        ),
        (
            "INVALID_ARGUMENT",
            "model 'magika': it keeps no state between requests: parameter 'sequence_id' has no meaning",
        ),
    ]


def test_a_stream_that_breaks_off_takes_its_sequences_with_it(demo_server: Daemon, signals: Frames) -> None:
    async def break_off() -> None:
        async with connect(demo_server.grpc) as channel:
            call = method(channel, "ModelStreamInfer")()
            for sequence in range(100, 110):
                await call.write(frame(signals[0, 0], sequence, 0))
                await call.read()
            assert live(demo_server) == 10
            call.cancel()
        # One more round trip on another connection: the server has seen the end of the stream by then or soon.
        for _ in range(1000):
            async with connect(demo_server.grpc) as other:
                await method(other, "ServerLive")(pb.ServerLiveRequest())
            if live(demo_server) == 0:
                return
        raise AssertionError(f"{live(demo_server)} sequences are left")

    asyncio.run(break_off())


@pytest.fixture(scope="module")
def stateful(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    """A daemon with a model that adds up what it gets in a state of its own, three sequences at most."""
    root = tmp_path_factory.mktemp("stateful")
    models.save(models.stateful(), root / "sum" / "1")
    (root / "sum" / "model.toml").write_text("[sequences]\nmax_live = 3\nidle_timeout = 1.0\n")
    with Daemon(root, "--cache-dir", str(cache_dir)) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


def test_a_model_with_a_state_of_its_own_keeps_sequences_apart_up_to_its_limit(stateful: Daemon) -> None:
    def add(value: int, sequence: str, **flags: bool) -> pb.ModelInferRequest:
        parameters: dict[str, Any] = {"sequence_id": sequence, **flags}
        return request("sum", {"x": np.full((1, 2), value, np.float32)}, parameters=parameters)

    async def talk() -> tuple[list[float], list[tuple[str, str]]]:
        async with connect(stateful.grpc) as channel:
            infer = method(channel, "ModelInfer")
            sums, refused = [], []
            for value in (1, 2, 3):
                for sequence in "abc":
                    answer = await infer(add(value, sequence, sequence_start=value == 1))
                    sums.append(float(np.frombuffer(answer.raw_output_contents[0], np.float32)[0]))
            for message in (add(1, "d", sequence_start=True), request("sum", {"x": np.zeros((1, 2), np.float32)})):
                call = infer(message)
                refused.append(((await call.code()).name, (await call.details() or "").partition(";")[0]))
            while live(stateful, "sum"):
                await method(channel, "ServerLive")(pb.ServerLiveRequest())
            call = infer(add(1, "a"))
            refused.append(((await call.code()).name, await call.details() or ""))
            return sums, refused

    sums, refused = asyncio.run(talk())
    # The model starts from its first input, and then adds each.
    assert sums == [2.0, 2.0, 2.0, 4.0, 4.0, 4.0, 7.0, 7.0, 7.0]
    assert refused == [
        ("RESOURCE_EXHAUSTED", "model 'sum': 3 sequences are live, which is the limit"),
        (
            "INVALID_ARGUMENT",
            "model 'sum': it keeps state between requests: a sequence_id is needed, and sequence_start first",
        ),
        (
            "NOT_FOUND",
            "model 'sum': sequence 'a' timed out after 1 s without a request; begin with sequence_start",
        ),
    ]
