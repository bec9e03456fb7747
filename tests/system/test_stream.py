"""One call, many requests: order, errors between good answers, and how much one stream may have under way."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from inferd._pb import open_inference_pb2 as pb
from tests import models
from tests.system import echo_models
from tests.system.daemon import Daemon
from tests.system.wire import OK, connect, echo, method, request, steps

pytestmark = pytest.mark.system

PENDING = 4
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
            echo([], "third"),
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
        "[INVALID_ARGUMENT] request 'third': model 'echo': input 'x' must have shape [?], got [0]",
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
    """Sent all at once, they would not fit the model's line, as the unary calls show."""
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
    # The first was running; those behind it were dropped from the line and never ran.
    assert [line["device"] for line in left] == ["CPU", *[""] * (len(left) - 1)]
    assert lines["next"]["outcome"] == "ok"


def test_no_stream_left_a_traceback(daemon: Daemon) -> None:
    assert daemon.stop() == 0
    lines = [json.loads(line) for line in daemon.lines]
    assert [line for line in lines if "exception" in line or line["level"] not in ("info", "error")] == []
