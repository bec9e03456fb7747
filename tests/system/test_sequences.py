"""Sequences over the wire: the server carries the state, or keeps it in place, and each is what it would be alone."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from inferd._pb import open_inference_pb2 as pb
from tests.system import clients, state_models
from tests.system.daemon import Daemon
from tests.system.gauges import wait_until
from tests.system.state_models import add, first, flags, work
from tests.system.wire import OK, connect, method, request

pytestmark = pytest.mark.system

VAD = "silero-vad"
FRAMES = 300
TRITONCLIENT = Path(__file__).with_name("tritonclient_sequences.py").read_text()

Frames = npt.NDArray[np.float32]

# A number and the same number as text are two sequences.
STREAMED: Sequence[int | str] = (1, "1", 2, "2", 3, "three", 4, "four")
UNARY: Sequence[int | str] = (11, 12, "13", 14)
TRITON: Sequence[int | str] = (21, 22, 23, "twenty-four")
SEQUENCES = len(STREAMED) + len(UNARY) + len(TRITON)


def frame(samples: Frames, sequence: int | str, number: int, last: int = FRAMES - 1) -> pb.ModelInferRequest:
    parameters = flags(sequence, start=number == 0, end=number == last)
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
    return first(answer)


async def each_answer(
    channel: grpc.aio.Channel, messages: Sequence[pb.ModelInferRequest]
) -> list[pb.ModelInferResponse]:
    """The answers on one stream to ``messages``, sent without waiting for any; all of them are good."""
    call = method(channel, "ModelStreamInfer")()

    async def send() -> None:
        for message in messages:
            await call.write(message)
        await call.done_writing()

    sending = asyncio.create_task(send())
    answers = [answer async for answer in call]
    await sending
    assert [answer.error_message for answer in answers] == [""] * len(messages)
    assert [answer.infer_response.id for answer in answers] == [message.id for message in messages]
    return [answer.infer_response for answer in answers]


async def over_a_stream(channel: grpc.aio.Channel, signal: Frames, sequence: int | str) -> list[float]:
    frames = [frame(signal[number], sequence, number) for number in range(FRAMES)]
    return [probability(answer) for answer in await each_answer(channel, frames)]


async def one_by_one(channel: grpc.aio.Channel, signal: Frames, sequence: int | str) -> list[float]:
    infer = method(channel, "ModelInfer")
    return [probability(await infer(frame(signal[n], sequence, n))) for n in range(FRAMES)]


def with_tritonclient(target: str, file: Path) -> list[list[float]]:
    return list(clients.run(TRITONCLIENT, target, VAD, str(file), *map(str, TRITON)))


def test_many_sequences_side_by_side_are_each_what_they_are_alone(
    demo_server: Daemon, tmp_path: Path, signals: Frames, expected: Frames, figure: Callable[[str], None]
) -> None:
    file = tmp_path / "frames.npy"
    np.save(file, signals[-len(TRITON) :])

    async def all_of_them() -> list[list[float]]:
        async with connect(demo_server.grpc) as shared:
            ways = [(over_a_stream, sequence) for sequence in STREAMED] + [(one_by_one, sequence) for sequence in UNARY]
            ours = [way(shared, signals[place], sequence) for place, (way, sequence) in enumerate(ways)]
            theirs = asyncio.to_thread(with_tritonclient, demo_server.grpc, file)
            *got, others = await asyncio.gather(*ours, theirs)
            return [*got, *others]

    got = np.array(asyncio.run(all_of_them()), np.float32)
    worst = float(np.abs(got - expected).max())
    figure(f"silero-vad: {SEQUENCES} sequences of {FRAMES} frames side by side, off by at most {worst:.1e}")
    assert worst < 1e-4
    wait_until(demo_server, "inferd_sequences", VAD, 0)


def test_a_state_is_shown_to_clients_that_ask_for_it(demo_server: Daemon, signals: Frames) -> None:
    async def ask() -> pb.ModelInferResponse:
        async with connect(demo_server.grpc) as channel:
            asking = frame(signals[0, 0], "shown", 0, last=0)
            asking.outputs.add(name="stateN")
            return await method(channel, "ModelInfer")(asking)

    answer = asyncio.run(ask())
    assert [(output.name, list(output.shape)) for output in answer.outputs] == [("stateN", [2, 1, 128])]
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).any()


def test_a_sequence_may_be_restarted_before_it_has_ended(demo_server: Daemon, signals: Frames) -> None:
    async def talk() -> list[float]:
        async with connect(demo_server.grpc) as channel:
            numbers = [0, 1, 2, 0, 1, 2]
            messages = [frame(signals[0, number], "again", number, last=9) for number in numbers]
            return [probability(answer) for answer in await each_answer(channel, messages)]

    probabilities = asyncio.run(talk())
    assert probabilities[:3] == pytest.approx(probabilities[3:], abs=1e-6)
    assert len({round(value, 6) for value in probabilities}) == 3


# -- other models -----------------------------------------------------------------


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    repository = state_models.write(tmp_path_factory.mktemp("repository"))
    with Daemon(repository, "--cache-dir", str(cache_dir)) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


def test_a_model_that_keeps_the_state_itself_serves_many_sequences_each_with_its_own_sum(daemon: Daemon) -> None:
    sequences, rounds = range(1, 9), 20

    async def talk() -> list[float]:
        async with connect(daemon.grpc) as channel:
            messages = [
                add(sequence * 100 + turn, sequence, start=turn == 0, end=turn == rounds - 1)
                for turn in range(rounds)
                for sequence in sequences
            ]
            return [first(answer) for answer in await each_answer(channel, messages)]

    # The model begins with its first value, and then adds each.
    sums = {sequence: float(sequence * 100) for sequence in sequences}
    expected = []
    for turn in range(rounds):
        for sequence in sequences:
            sums[sequence] += sequence * 100 + turn
            expected.append(sums[sequence])
    assert asyncio.run(talk()) == expected
    wait_until(daemon, "inferd_sequences", "inner", 0)


def test_a_place_that_one_sequence_leaves_is_clean_for_the_next(daemon: Daemon) -> None:
    async def talk() -> list[float]:
        async with connect(daemon.grpc) as channel:
            infer = method(channel, "ModelInfer")
            return [first(await infer(add(7, f"{turn}", start=True, end=True))) for turn in range(30)]

    assert asyncio.run(talk()) == [14.0] * 30


def test_a_number_and_the_same_number_as_text_are_two_sequences(daemon: Daemon) -> None:
    async def talk() -> list[float]:
        async with connect(daemon.grpc) as channel:
            infer, ids = method(channel, "ModelInfer"), (5, "5")
            messages = [
                add(turn + 1 + 10 * place, s, start=not turn, end=turn == 2)
                for turn in range(3)
                for place, s in enumerate(ids)
            ]
            return [first(await infer(message)) for message in messages]

    assert asyncio.run(talk()) == [2.0, 22.0, 4.0, 34.0, 7.0, 47.0]


def test_requests_of_a_sequence_that_are_sent_together_run_in_the_order_they_were_sent(daemon: Daemon) -> None:
    counts = [200, 0, 1, 50, 2, 0, 100, 3]

    async def talk() -> list[float]:
        async with connect(daemon.grpc) as channel:
            last = len(counts) - 1
            messages = [work(c, "in order", str(n), start=n == 0, end=n == last) for n, c in enumerate(counts)]
            return [first(answer) for answer in await each_answer(channel, messages)]

    assert asyncio.run(talk()) == np.cumsum(counts).tolist()


def test_a_priority_does_not_overtake_within_a_sequence(daemon: Daemon) -> None:
    async def talk() -> list[float]:
        async with connect(daemon.grpc) as channel:
            urgent = [work(n, "urgent", str(n), start=n == 1, end=n == 6, priority=7 - n) for n in range(1, 7)]
            return [first(answer) for answer in await each_answer(channel, urgent)]

    assert asyncio.run(talk()) == np.cumsum(range(1, 7)).tolist()


def test_sequences_that_run_as_one_batch_keep_their_states_apart(daemon: Daemon) -> None:
    sequences, rounds = 40, 25

    def step(sequence: int, turn: int) -> pb.ModelInferRequest:
        inputs = {"x": np.array([[sequence + 1000 * (turn == 0)]], np.float32)}
        parameters = flags(sequence, start=turn == 0, end=turn == rounds - 1)
        return request("batched", inputs, f"{turn}", parameters)

    async def talk() -> list[list[float]]:
        async with connect(daemon.grpc) as channel:
            talks = [[step(sequence, turn) for turn in range(rounds)] for sequence in range(1, sequences + 1)]
            each = await asyncio.gather(*(each_answer(channel, messages) for messages in talks))
            return [[first(answer) for answer in answers] for answers in each]

    for sequence, sums in enumerate(asyncio.run(talk()), 1):
        assert sums == [1000.0 + sequence * (turn + 1) for turn in range(rounds)]


def test_outside_of_any_sequence_a_state_may_be_sent_by_the_client(daemon: Daemon) -> None:
    state = np.arange(6, dtype=np.float32).reshape(2, 3, 1)

    async def ask() -> pb.ModelInferResponse:
        async with connect(daemon.grpc) as channel:
            call = method(channel, "ModelInfer")(request("batched", {"x": np.ones((3, 1), np.float32), "state": state}))
            assert await call.code() is OK
            return await call

    answer = asyncio.run(ask())
    assert [output.name for output in answer.outputs] == ["y", "next"]
    assert np.frombuffer(answer.raw_output_contents[1], np.float32).tolist() == (state + 1).ravel().tolist()


def test_metadata_leaves_out_what_the_server_carries(daemon: Daemon) -> None:
    async def ask() -> pb.ModelMetadataResponse:
        async with connect(daemon.grpc) as channel:
            return await method(channel, "ModelMetadata")(pb.ModelMetadataRequest(name="batched"))

    metadata = asyncio.run(ask())
    assert [(tensor.name, list(tensor.shape)) for tensor in metadata.inputs] == [("x", [-1, 1])]
    assert [tensor.name for tensor in metadata.outputs] == ["y"]
