"""One call, many requests: order, errors between good answers, and how much one stream may have in flight."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode

from inferd._pb import open_inference_pb2 as pb
from inferd.tensors import DType
from tests import models
from tests.system import echo_models, wide_answers
from tests.system.daemon import Daemon
from tests.system.memory import Growth
from tests.system.wide_answers import ANSWER
from tests.system.wire import OK, connect, counts, echo, method, request, steps

pytestmark = pytest.mark.system

PENDING = 4
WINDOW = 16 << 20
ASKED = 150
# Beyond the window: the last request read and its answer, gRPC's copy of the answer it is sending and what it
# receives ahead, requests held twice while in flight, and what the allocator keeps of memory that was freed.
ALLOWANCE = 48 << 20
UNORDERED = (("inferd-unordered", "true"),)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    repository = echo_models.write(tmp_path_factory.mktemp("repository"))
    # One runs, the others of a stream's pending requests wait: it just holds what one stream may send.
    models.save(echo_models.steps(), repository, "just", settings=echo_models.serial(PENDING - 1))
    flags = ("--cache-dir", str(cache_dir), "--request-log", "all", "--stream-max-pending", str(PENDING))
    with Daemon(repository, *flags) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    """A daemon whose streams are bounded by their bytes alone."""
    repository = tmp_path_factory.mktemp("repository")
    models.save(models.identity(DType.INT64, [-1]), repository, "echo")
    models.save(wide_answers.model(), repository, "wide")
    with Daemon(repository, "--cache-dir", str(cache_dir), "--stream-max-pending-bytes", str(WINDOW)) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


Answers = list[pb.ModelStreamInferResponse]


def streamed(
    daemon: Daemon, messages: Sequence[pb.ModelInferRequest | bytes], metadata: Sequence[tuple[str, str]] = ()
) -> Answers:
    """All answers on one stream to ``messages``, which are sent without waiting for any; the stream ends well."""

    async def talk() -> Answers:
        async with connect(daemon.grpc) as channel:
            call = method(channel, "ModelStreamInfer")(_each(messages), metadata=metadata)
            answers = [answer async for answer in call]
            assert await call.code() is OK
            return answers

    return asyncio.run(talk())


async def _each(messages: Sequence[pb.ModelInferRequest | bytes]) -> Any:
    for message in messages:
        yield message


def ids(answers: Answers) -> list[str]:
    assert [answer.error_message for answer in answers] == [""] * len(answers)
    return [answer.infer_response.id for answer in answers]


def slow_first() -> list[pb.ModelInferRequest]:
    """A slow request and two quick ones, side by side on infer requests of their own."""
    return [steps(count, name, model="slots") for count, name in ((1500, "slow"), (0, "quick"), (1, "quicker"))]


def test_answers_come_in_request_order(daemon: Daemon) -> None:
    assert ids(streamed(daemon, slow_first())) == ["slow", "quick", "quicker"]


def test_a_client_may_ask_for_each_answer_as_it_is_ready(daemon: Daemon) -> None:
    order = ids(streamed(daemon, slow_first(), UNORDERED))
    assert sorted(order) == ["quick", "quicker", "slow"]
    assert order[-1] == "slow"


@pytest.mark.parametrize("value", ["false", "", "TRUE"])
def test_any_other_value_leaves_the_order(daemon: Daemon, value: str) -> None:
    assert ids(streamed(daemon, slow_first(), (("inferd-unordered", value),))) == ["slow", "quick", "quicker"]


def test_a_request_that_fails_does_not_end_the_stream(daemon: Daemon) -> None:
    answers = streamed(
        daemon,
        [
            echo([1], "first"),
            request("nosuch", {}, "second\n"),
            request("echo", {"x": np.zeros([1, 2], np.int64)}, "third"),
            b"\xff\xff",
            request("broken", {}),
            echo([6], "last"),
        ],
    )
    assert [(a.infer_response.model_name, a.infer_response.id) for a in answers] == [
        ("echo", "first"),
        ("nosuch", "second\n"),
        ("echo", "third"),
        ("", ""),
        ("broken", ""),
        ("echo", "last"),
    ]
    errors = [answer.error_message for answer in answers]
    assert errors[1:4] == [
        "[NOT_FOUND] request 'second ': unknown model 'nosuch'",
        "[INVALID_ARGUMENT] request 'third': model 'echo': input 'x' must have shape [?], got [1,2]",
        "[INVALID_ARGUMENT]: the message is not a ModelInferRequest",
    ]
    assert errors[4].startswith("[UNAVAILABLE]: model 'broken' is unavailable: ")
    assert [errors[0], errors[-1]] == ["", ""]
    assert [list(answers[place].infer_response.raw_output_contents) for place in (0, -1)] == [
        [(1).to_bytes(8, "little")],
        [(6).to_bytes(8, "little")],
    ]


def test_a_request_that_times_out_says_so_and_does_not_end_the_stream(daemon: Daemon) -> None:
    late, after = streamed(daemon, [steps(500, "late", parameters={"timeout": 1000}), steps(0, "after")])
    assert late.error_message.startswith("[DEADLINE_EXCEEDED] request 'late': model 'steps': deadline passed while ")
    assert (after.error_message, after.infer_response.id) == ("", "after")


def test_the_final_response_is_marked_for_clients_that_ask(daemon: Daemon) -> None:
    marked, plain = streamed(daemon, [echo([1], parameters={"triton_enable_empty_final_response": True}), echo([2])])
    assert marked.infer_response.parameters["triton_final_response"].bool_param
    assert not plain.infer_response.parameters


def test_an_empty_stream_ends_well(daemon: Daemon) -> None:
    assert streamed(daemon, []) == []


@pytest.mark.parametrize("metadata", [(), UNORDERED], ids=["ordered", "unordered"])
def test_a_stream_is_read_no_further_than_its_pending_requests_allow(
    daemon: Daemon, metadata: Sequence[tuple[str, str]]
) -> None:
    """Sent all at once, they would not fit the model's queue, as the unary calls show."""
    flood = [steps(20, str(number), model="just") for number in range(10 * PENDING)]

    async def unary() -> set[StatusCode]:
        async with connect(daemon.grpc) as channel:
            infer = method(channel, "ModelInfer")
            return {await call.code() for call in [infer(message) for message in flood]}

    assert asyncio.run(unary()) == {OK, StatusCode.RESOURCE_EXHAUSTED}
    assert sorted(ids(streamed(daemon, flood, metadata)), key=int) == [str(number) for number in range(len(flood))]


def test_a_client_that_hangs_up_frees_what_it_asked_for(daemon: Daemon) -> None:
    async def hang_up() -> None:
        async with connect(daemon.grpc) as channel:
            call = method(channel, "ModelStreamInfer")(metadata=UNORDERED)
            for number in range(PENDING - 1):
                await call.write(steps(2000, f"left-{number}"))
            # Requests of a stream are taken in order: once this is answered, the others have been.
            await call.write(echo([1], "taken"))
            assert (await call.read()).infer_response.id == "taken"
            call.cancel()
            assert await call.code() is StatusCode.CANCELLED
            await method(channel, "ModelInfer")(steps(0, "next"))

    asyncio.run(hang_up())
    assert daemon.stop() == 0
    lines = {line["id"]: line for line in map(json.loads, daemon.lines) if line["event"] == "request"}
    left = [lines[f"left-{number}"] for number in range(PENDING - 1)]
    assert [line["outcome"] for line in left] == ["cancelled"] * len(left)
    # The first was running; those behind it were dropped from the queue and never ran.
    assert [line["device"] for line in left] == ["CPU", *[""] * (len(left) - 1)]
    assert lines["next"]["outcome"] == "ok"


def wide_echo(number: int) -> pb.ModelInferRequest:
    """A request as large as its answer, whose size the model leaves open."""
    return echo([number] * (ANSWER // 8), str(number))


Ask = Callable[[int], pb.ModelInferRequest]
BOTH_WAYS = pytest.mark.parametrize("ask", [wide_answers.ask, wide_echo], ids=["large answers", "large requests too"])


async def send_all(call: Any, ask: Ask) -> None:
    for number in range(ASKED):
        await call.write(ask(number))
    await call.done_writing()


async def answered(daemon: Daemon, model: str) -> int:
    return (await asyncio.to_thread(counts, daemon)).get((model, "ok"), 0)


async def window_is_full(daemon: Daemon, model: str, before: int) -> None:
    """Return when as many answers wait for the slow reader as its window holds."""
    while await answered(daemon, model) < before + WINDOW // ANSWER - 1:
        pass


@BOTH_WAYS
def test_a_slow_reader_bounds_the_daemons_memory_and_loses_nothing(
    roomy: Daemon, ask: Ask, figure: Callable[[str], None]
) -> None:
    model = ask(0).model_name

    async def talk() -> None:
        async with connect(roomy.grpc) as mine, connect(roomy.grpc) as others:
            before, growth = await answered(roomy, model), Growth(roomy.process.pid)
            slow = method(mine, "ModelStreamInfer")()
            sending = asyncio.create_task(send_all(slow, ask))
            await window_is_full(roomy, model, before)

            quick = method(others, "ModelStreamInfer")()
            for number in range(200):
                await quick.write(echo([number], str(number)))
                assert (await quick.read()).infer_response.id == str(number)
            figure(f"slow reader of '{model}': {growth.peak >> 20} MiB of {ASKED * ANSWER >> 20} MiB asked for")
            assert growth.peak < WINDOW + ALLOWANCE

            for number in range(ASKED):
                answer = (await slow.read()).infer_response
                value = ask(number).raw_input_contents[0]
                assert answer.id == str(number)
                assert answer.raw_output_contents[0] == value * (ANSWER // len(value))
            await sending
            assert await slow.code() is OK
            assert growth.peak < WINDOW + ALLOWANCE

    asyncio.run(talk())


@BOTH_WAYS
def test_slow_readers_that_hang_up_leave_nothing_behind(roomy: Daemon, ask: Ask) -> None:
    model = ask(0).model_name

    async def hang_up() -> None:
        async with connect(roomy.grpc) as channel:
            call = method(channel, "ModelStreamInfer")()
            before = await answered(roomy, model)
            sending = asyncio.create_task(send_all(call, ask))
            await window_is_full(roomy, model, before)
            call.cancel()
            # How the client sees its own hanging up depends on how far its message had got.
            await asyncio.gather(sending, return_exceptions=True)
            assert await call.code() is not OK

    growth = Growth(roomy.process.pid)
    for _ in range(2 * (WINDOW + ALLOWANCE) // WINDOW):
        asyncio.run(hang_up())
    assert ids(streamed(roomy, [ask(number) for number in range(PENDING)])) == [str(n) for n in range(PENDING)]
    assert growth.peak < WINDOW + ALLOWANCE


def test_no_stream_left_a_traceback(daemon: Daemon) -> None:
    assert daemon.stop() == 0
    lines = [json.loads(line) for line in daemon.lines]
    # What OpenVINO said of runs that fail on purpose is a warning.
    said = [line for line in lines if line["event"] != "OpenVINO failed"]
    assert [line for line in said if "exception" in line or line["level"] not in ("info", "error")] == []
    assert not any("exception" in line for line in lines)
