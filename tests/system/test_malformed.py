"""A thousand requests that cannot be served, then a thousand that can: no slot, count or response is lost."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from inferd._pb import open_inference_pb2 as pb
from tests.system import echo_models, wire
from tests.system.daemon import Daemon
from tests.system.wire import OK, by_outcome, counts, echo, method, request, steps

pytestmark = pytest.mark.system

MAX_MESSAGE = 64 << 10
OUTCOMES = {
    OK: "ok",
    StatusCode.INVALID_ARGUMENT: "invalid",
    StatusCode.NOT_FOUND: "not_found",
    StatusCode.UNAVAILABLE: "unavailable",
    StatusCode.RESOURCE_EXHAUSTED: "overloaded",
    StatusCode.DEADLINE_EXCEEDED: "deadline",
    StatusCode.INTERNAL: "internal",
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    repository = echo_models.write(tmp_path_factory.mktemp("repository"))
    flags = ("--cache-dir", str(cache_dir), "--request-log", "all", "--max-message-bytes", str(MAX_MESSAGE))
    with Daemon(repository, *flags) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


class Client:
    """Sends requests, many at once, and keeps count of how they ended."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.infer = method(channel, "ModelInfer")
        self.ended: Counter[StatusCode] = Counter()

    async def send(self, message: pb.ModelInferRequest | bytes) -> Any:
        """The call, ended."""
        return await self.end(self.infer(message))

    async def end(self, call: Any) -> Any:
        self.ended[await call.code()] += 1
        return call

    async def send_all(self, messages: Iterable[pb.ModelInferRequest | bytes], at_once: int = 32) -> list[Any]:
        """The calls, in order, all ended."""
        waiting = iter(enumerate(messages))
        calls: dict[int, Any] = {}

        async def work() -> None:
            for place, message in waiting:
                calls[place] = await self.send(message)

        await asyncio.gather(*(work() for _ in range(at_once)))
        return [calls[place] for place in sorted(calls)]


# -- good ones --------------------------------------------------------------------


def good(model: str, number: int = 7) -> pb.ModelInferRequest:
    """A request that ``model`` answers with something that depends on ``number``."""
    match model:
        case "echo":
            return echo([number, 2**40 + number])
        case "text":
            message = pb.ModelInferRequest(model_name="text")
            message.inputs.add(name="x", datatype="BYTES", shape=[2]).contents.bytes_contents.extend(
                [b"", str(number).encode()]
            )
            return message
        case "bytewise":
            signed, unsigned = np.array([-128, -1, 0, 127], np.int8), np.array([0, 255, 1, number % 256], np.uint8)
            return request("bytewise", {"signed": signed, "unsigned": unsigned})
        case "rows":
            left = np.full((number % 8 + 1, 2), number, np.float32)
            return request("rows", {"left": left, "right": np.ones_like(left)})
        case "picky":
            x = np.arange(4, dtype=np.float32) + number
            return request("picky", {"x": x, "shape": np.array([2, 2] if number % 2 else [4, 1], np.int64)})
    raise AssertionError(f"no good request for {model}")


MODELS = ("echo", "text", "bytewise", "rows", "picky")


def expected(model: str, number: int) -> list[tuple[str, list[int], bytes]]:
    """Name, shape and bytes of each output that answers ``good(model, number)``."""
    match model:
        case "echo":
            return [("x", [2], np.array([number, 2**40 + number]).tobytes())]
        case "text":
            text = str(number).encode()
            return [("x", [2], bytes(4) + len(text).to_bytes(4, "little") + text)]
        case "bytewise":
            return [("sum", [4], np.array([-128, 254, 1, 127 + number % 256], np.int32).tobytes())]
        case "rows":
            shape = [number % 8 + 1, 2]
            sums, differences = (np.full(shape, number + n, np.float32).tobytes() for n in (1, -1))
            return [("sum", shape, sums), ("difference", shape, differences)]
        case _:
            raw = (np.arange(4, dtype=np.float32) + number).tobytes()
            return [("y", [2, 2] if number % 2 else [4, 1], raw)]


# -- bad ones, row by row ---------------------------------------------------------


def spoilt(model: str, **fields: Any) -> pb.ModelInferRequest:
    """A good request with fields of its first input, or ``model_*`` fields of its own, replaced."""
    message = good(model)
    for name, value in fields.items():
        target: Any = message if name.startswith("model_") else message.inputs[0]
        if isinstance(value, list):
            getattr(target, name)[:] = value
        else:
            setattr(target, name, value)
    return message


def raw(model: str, *entries: bytes) -> pb.ModelInferRequest:
    message = good(model)
    message.raw_input_contents[:] = entries
    return message


def parameter(key: str, kind: str, value: object) -> pb.ModelInferRequest:
    message = good("echo")
    setattr(message.parameters[key], kind, value)
    return message


def twice(model: str) -> pb.ModelInferRequest:
    message = good(model)
    message.inputs.append(message.inputs[0])
    message.raw_input_contents.append(message.raw_input_contents[0])
    return message


def asking_for(*names: str, **parameters: int) -> pb.ModelInferRequest:
    message = good("echo")
    for name in names:
        output = message.outputs.add(name=name)
        for key, value in parameters.items():
            output.parameters[key].int64_param = value
    return message


def shared(**parameters: object) -> pb.ModelInferRequest:
    message = good("echo")
    for key, value in parameters.items():
        choice = "string_param" if isinstance(value, str) else "int64_param"
        setattr(message.inputs[0].parameters[key], choice, value)
    del message.raw_input_contents[:]
    return message


def mixed() -> pb.ModelInferRequest:
    message = good("echo")
    message.inputs[0].contents.int64_contents.extend([1, 2])
    return message


def typed(model: str, field: str, *values: object) -> pb.ModelInferRequest:
    """Contents in ``field`` of the first input, those of the others empty."""
    message = good(model)
    del message.raw_input_contents[:]
    getattr(message.inputs[0].contents, field).extend(values)
    return message


def typed_bytes(signed: int, unsigned: int) -> pb.ModelInferRequest:
    message = typed("bytewise", "int_contents", signed, 0, 0, 0)
    message.inputs[1].contents.uint_contents.extend([unsigned, 0, 0, 0])
    return message


def disagreeing() -> pb.ModelInferRequest:
    left, right = np.zeros((2, 2), np.float32), np.zeros((3, 2), np.float32)
    return request("rows", {"left": left, "right": right})


INVALID, NOT_FOUND = StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND
ROWS: Sequence[tuple[pb.ModelInferRequest | bytes, StatusCode, str]] = [
    (spoilt("echo", model_name="ech"), NOT_FOUND, "unknown model 'ech' (did you mean echo?)"),
    (spoilt("echo", model_name=""), NOT_FOUND, "unknown model ''"),
    (spoilt("echo", model_name="../echo"), NOT_FOUND, "unknown model '../echo' (did you mean echo?)"),
    (spoilt("echo", model_name="a\nb"), NOT_FOUND, "unknown model 'a b'"),
    (spoilt("echo", model_version="2"), NOT_FOUND, "model 'echo' has no version '2'; versions: 1"),
    (spoilt("echo", model_version="01"), NOT_FOUND, "model 'echo' has no version '01'; versions: 1"),
    (spoilt("echo", model_version="latest"), NOT_FOUND, "model 'echo' has no version 'latest'; versions: 1"),
    (spoilt("echo", name="X"), INVALID, "model 'echo': unknown input 'X'; inputs: x"),
    (spoilt("echo", datatype="INT32"), INVALID, "model 'echo': input 'x' must be INT64, got 'INT32'"),
    (spoilt("echo", datatype="int64"), INVALID, "model 'echo': input 'x' must be INT64, got 'int64'"),
    (spoilt("echo", shape=[0]), INVALID, "model 'echo': input 'x' of shape [0] INT64 must be 0 bytes, got 16"),
    (spoilt("echo", shape=[-1]), INVALID, "model 'echo': input 'x' must have shape [?], got [-1]"),
    (spoilt("echo", shape=[1, 2]), INVALID, "model 'echo': input 'x' must have shape [?], got [1,2]"),
    (spoilt("echo", shape=[]), INVALID, "model 'echo': input 'x' must have shape [?], got []"),
    (spoilt("echo", shape=[3]), INVALID, "model 'echo': input 'x' of shape [3] INT64 must be 24 bytes, got 16"),
    (spoilt("rows", shape=[0, 2]), INVALID, "model 'rows': input 'left' must have shape [1..8,2], got [0,2]"),
    (spoilt("rows", shape=[9, 2]), INVALID, "model 'rows': input 'left' must have shape [1..8,2], got [9,2]"),
    (disagreeing(), INVALID, "model 'rows': inputs disagree on the batch size: 'left' 2, 'right' 3"),
    (raw("echo", bytes(15)), INVALID, "model 'echo': input 'x' of shape [2] INT64 must be 16 bytes, got 15"),
    (raw("echo", bytes(16), b""), INVALID, "model 'echo': 1 inputs come with 2 raw_input_contents"),
    (raw("rows", bytes(16)), INVALID, "model 'rows': 2 inputs come with 1 raw_input_contents"),
    (raw("rows"), INVALID, "model 'rows': input 'left' of shape [8, 2] must have 16 elements, got 0"),
    (twice("echo"), INVALID, "model 'echo': input 'x' is given twice"),
    (twice("rows"), INVALID, "model 'rows': input 'left' is given twice"),
    (request("rows", {}), INVALID, "model 'rows': input 'left' is missing; inputs: left, right"),
    (asking_for("y"), INVALID, "model 'echo': unknown output 'y'; outputs: x"),
    (asking_for("x", "x"), INVALID, "model 'echo': 2 outputs are requested; the model has 1"),
    (asking_for("x", shared_memory_offset=1), INVALID, "model 'echo': output 'x': shared memory is not enabled"),
    (asking_for("x", classification=-1), INVALID, "model 'echo': output 'x': parameter 'classification' must be an in"),
    (
        shared(shared_memory_region="/dev/shm/x", shared_memory_byte_size=16),
        INVALID,
        "model 'echo': input 'x': shared memory is not enabled on this server",
    ),
    (
        shared(shared_memory_handle="x"),
        INVALID,
        "model 'echo': input 'x': unknown parameter 'shared_memory_handle'; al",
    ),
    (mixed(), INVALID, "model 'echo': input 'x' has contents and raw_input_contents; expected one of them"),
    (typed("echo", "int_contents", 1, 2), INVALID, "model 'echo': input 'x' is INT64: use int64_contents, not int_"),
    (typed("echo", "int64_contents", 1), INVALID, "model 'echo': input 'x' of shape [2] must have 2 elements, got 1"),
    (typed_bytes(128, 0), INVALID, "model 'bytewise': input 'signed': values must be -128..127 (INT8)"),
    (typed_bytes(-129, 0), INVALID, "model 'bytewise': input 'signed': values must be -128..127 (INT8)"),
    (typed_bytes(0, 256), INVALID, "model 'bytewise': input 'unsigned': values must be 0..255 (UINT8)"),
    (typed("text", "bytes_contents", b"a\0"), INVALID, "model 'text': input 'x' of shape [2] must have 2 elements"),
    (parameter("timeout", "int64_param", -1), INVALID, "model 'echo': parameter 'timeout' must be an integer of 0"),
    (parameter("timeout", "string_param", "1"), INVALID, "model 'echo': parameter 'timeout' must be an integer of 0"),
    (parameter("priority", "bool_param", True), INVALID, "model 'echo': parameter 'priority' must be an integer of"),
    (parameter("sequence_x", "int64_param", 1), INVALID, "model 'echo': unknown request parameter 'sequence_x'; allo"),
    (b"\xff\xff\xff\xff", INVALID, "the message is not a ModelInferRequest"),
    (good("echo").SerializeToString()[:-3], INVALID, "the message is not a ModelInferRequest"),
    (pb.ModelInferRequest(model_name="broken"), StatusCode.UNAVAILABLE, "model 'broken' is unavailable: model 'broken"),
]


# -- bad ones, made up ------------------------------------------------------------


@st.composite
def made_up(draw: st.DrawFn) -> bytes:
    """A good request with one thing in it that no server of these models can accept, or no request at all."""
    message = good(draw(st.sampled_from(MODELS)))
    first = message.inputs[0]
    names = {"x", "signed", "unsigned", "left", "right", "shape"}
    match draw(st.integers(0, 11)):
        case 0:
            message.model_name = draw(st.text().filter(lambda s: s not in (*MODELS, "steps", "busy", "slots")))
        case 1:
            message.model_version = draw(st.text(min_size=1).filter(lambda s: s != "1"))
        case 2:
            first.name = draw(st.text().filter(lambda s: s not in names))
        case 3:
            first.datatype = draw(st.text().filter(lambda s: s != first.datatype))
        case 4:
            first.shape[:] = [draw(st.integers(-(2**63), 0)), *first.shape[1:]]
        case 5:
            first.shape.extend(draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=70)))
        case 6:
            message.raw_input_contents.extend(draw(st.lists(st.binary(), min_size=3, max_size=5)))
        case 7:
            # Others may be anything.
            message.parameters["shared_memory_" + draw(st.text())].string_param = draw(st.text())
        case 8:
            message.parameters["timeout"].int64_param = draw(st.integers(-(2**63), -1))
        case 9:
            message.outputs.add(name=draw(st.text().filter(lambda s: s not in ("x", "y", "sum", "difference"))))
        case 10:
            whole = message.SerializeToString()
            return whole[: draw(st.integers(0, len(whole) - 1))]
        case _:
            return draw(st.binary(max_size=64))
    return message.SerializeToString()


def made_up_messages(number: int) -> list[bytes]:
    """``number`` of them, others in each run."""
    messages: list[bytes] = []

    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(made_up())
    def collect(message: bytes) -> None:
        messages.append(message)

    collect()
    return messages


# -- what ends otherwise ----------------------------------------------------------


async def a_queue_of_one_refuses_what_it_can_not_hold(client: Client) -> None:
    """Ten at once, one runs and one waits: the rest are told when to come back."""
    calls = await client.send_all((steps(400, model="busy") for _ in range(10)), at_once=10)
    codes = Counter([await call.code() for call in calls])
    assert set(codes) == {OK, StatusCode.RESOURCE_EXHAUSTED}
    for call in calls:
        if await call.code() is StatusCode.RESOURCE_EXHAUSTED:
            assert (await call.details()).startswith("model 'busy': queue is full (1 requests waiting); retry in ")
            trailers = dict(await call.trailing_metadata())
            retry = RetryInfo()
            assert Status.FromString(trailers["grpc-status-details-bin"]).details[0].Unpack(retry)
            assert retry.retry_delay.ToMilliseconds() == int(trailers["grpc-retry-pushback-ms"]) >= 1


async def a_run_that_fails_is_one_sentence_and_keeps_its_slot(client: Client) -> None:
    for _ in range(20):
        x, shape = np.zeros(4, np.float32), np.array([3, 2], np.int64)
        call = await client.send(request("picky", {"x": x, "shape": shape}))
        assert await call.code() is StatusCode.INTERNAL
        sentence = await call.details()
        assert sentence.startswith("model 'picky': inference failed: ")
        assert "/" not in sentence
        assert "0x" not in sentence
        assert await (await client.send(good("picky"))).code() is OK


async def a_timeout_is_answered_while_the_run_goes_on(client: Client) -> None:
    late = await client.send(steps(20_000, "late", parameters={"timeout": 30_000}))
    assert await wire.outcome(late) == (
        StatusCode.DEADLINE_EXCEEDED,
        "model 'steps': deadline passed while the request was running",
    )
    # The model has one infer request, and the late one's run still holds it: see the log, below.
    assert await (await client.send(steps(0, "after late"))).code() is OK


async def a_deadline_frees_the_line_while_the_run_goes_on(client: Client) -> None:
    """The deadline of the call itself: the client gives up by itself, and the server knows that it does."""
    running = client.infer(steps(3000, "in front"))
    waiting = client.infer(steps(0, "expired"), timeout=0.05)
    assert await (await client.end(waiting)).code() is StatusCode.DEADLINE_EXCEEDED
    assert not running.done()
    assert await (await client.end(running)).code() is OK


async def a_message_beyond_the_limit_never_reaches_a_model(client: Client) -> None:
    call = client.infer(echo([0] * MAX_MESSAGE))
    code, sentence = await wire.outcome(call)
    assert code is StatusCode.RESOURCE_EXHAUSTED
    assert f"larger than max ({8 * MAX_MESSAGE}" in sentence or f"vs. {MAX_MESSAGE}" in sentence


async def repository_control_is_off(channel: grpc.aio.Channel) -> None:
    for name in ("RepositoryModelLoad", "RepositoryModelUnload"):
        message = getattr(pb, f"{name}Request")(model_name="echo")
        assert await wire.outcome(method(channel, name)(message)) == (
            StatusCode.PERMISSION_DENIED,
            f"{name} is not allowed; start the server with --repository-control",
        )


# -- the tests --------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[2][:60])
def test_each_mistake_has_its_code_and_sentence(
    daemon: Daemon, row: tuple[pb.ModelInferRequest | bytes, StatusCode, str]
) -> None:
    message, code, sentence = row

    async def ask() -> tuple[StatusCode, str]:
        async with wire.connect(daemon.grpc) as channel:
            return await wire.outcome(method(channel, "ModelInfer")(message))

    seen, said = asyncio.run(ask())
    assert (seen, said[: len(sentence)]) == (code, sentence)


def test_a_thousand_bad_requests_cost_the_good_ones_nothing(daemon: Daemon, figure: Callable[[str], None]) -> None:
    bad = [row for _ in range(8) for row in ROWS]
    made = made_up_messages(1000 - len(bad))
    before = by_outcome(counts(daemon))
    numbers = range(1000)

    async def storm() -> Counter[StatusCode]:
        async with wire.connect(daemon.grpc) as channel:
            client = Client(channel)
            for (_, code, sentence), call in zip(bad, await client.send_all(m for m, _, _ in bad), strict=True):
                assert await call.code() is code, sentence
            for message, call in zip(made, await client.send_all(made), strict=True):
                code, sentence = await wire.outcome(call)
                assert code in (INVALID, NOT_FOUND), f"{message.hex()} was answered {code}: {sentence}"
            await a_queue_of_one_refuses_what_it_can_not_hold(client)
            await a_run_that_fails_is_one_sentence_and_keeps_its_slot(client)
            await a_timeout_is_answered_while_the_run_goes_on(client)
            await a_deadline_frees_the_line_while_the_run_goes_on(client)
            await a_message_beyond_the_limit_never_reaches_a_model(client)
            await repository_control_is_off(channel)

            asked = [(MODELS[number % len(MODELS)], number) for number in numbers]
            calls = await client.send_all(good(model, number) for model, number in asked)
            for (model, number), call in zip(asked, calls, strict=True):
                answer = await call
                seen = [(o.name, list(o.shape)) for o in answer.outputs]
                answered = [(*o, r) for o, r in zip(seen, answer.raw_output_contents, strict=True)]
                assert answered == expected(model, number)
            return client.ended

    ended = asyncio.run(storm())
    assert sum(n for code, n in ended.items() if code is not OK) > 1000
    counted = by_outcome(counts(daemon))
    seen = {outcome: n - before.get(outcome, 0) for outcome, n in counted.items() if n != before.get(outcome, 0)}
    # A call whose own deadline passes is cancelled by its client; which of the two the server sees first is chance.
    seen["deadline"] += seen.pop("cancelled", 0)
    # The message over the limit: gRPC has told the client, and that it came is counted all the same.
    assert seen.pop("aborted_receive") == 1
    assert seen == {OUTCOMES[code]: n for code, n in ended.items()}
    figure(f"malformed: {', '.join(f'{n} {code.name}' for code, n in ended.most_common())}; all as expected")


def test_afterwards_every_slot_is_usable(daemon: Daemon) -> None:
    async def ask() -> bool:
        async with wire.connect(daemon.grpc) as channel:
            infer = method(channel, "ModelInfer")
            spoiling = (b"\xff", steps(9, model="slots", parameters={"timeout": 1}), request("slots", {}))
            for call in [infer(message) for message in spoiling * 20]:
                await call.code()
            return await wire.all_slots_usable(infer)

    assert asyncio.run(ask())


def test_the_log_has_a_line_a_request_and_no_traceback(daemon: Daemon) -> None:
    counted = sum(counts(daemon).values())
    assert daemon.stop() == 0
    lines = [json.loads(line) for line in daemon.lines]
    assert {line["event"] for line in lines if line["level"] == "error"} == {"model load failed"}
    assert [line for line in lines if "exception" in line] == []
    requests = [line for line in lines if line["event"] == "request"]
    assert len(requests) == counted

    named = {line["id"]: line for line in requests}
    # Answered at once, while the next had to wait for the infer request that the run still held.
    assert named["late"]["outcome"] == "deadline"
    assert named["after late"]["queue_ms"] > named["late"]["total_ms"]
    # Answered before what it waited for, and never run.
    assert named["expired"]["outcome"] in ("deadline", "cancelled")
    assert named["expired"]["device"] == ""
    assert [i for i in named if i in ("in front", "expired")] == ["expired", "in front"]
