"""Numbers that the device cannot hold are refused in every kind of input, and all others are computed correctly."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import numpy.typing as npt
import pytest

from inferd._pb import open_inference_pb2 as pb
from inferd.engine.runtime import ov
from inferd.rpc.codec import CONTENTS
from inferd.tensors import DType
from tests import models
from tests.engine import models as small
from tests.engine.models import op, parameter
from tests.shared_memory.objects import shared_object
from tests.system.daemon import Daemon
from tests.system.state_models import flags
from tests.system.wire import OK, connect, method, outcome, request

pytestmark = pytest.mark.system

Array = npt.NDArray[Any]

INT32 = "-2147483648..2147483647: CPU computes {} in 32 bits"
UNSIGNED = "0..2147483647: CPU computes {} in 32 bits"
IN_FLOAT32 = "-16777216..16777216: CPU may compute {} of {} in float32"
FLOAT32 = "-3.4028234663852886e+38..3.4028234663852886e+38: CPU computes FP64 as FP32"
HUGE, HALF = 2.0**128, 2.0**126


class Case(NamedTuple):
    """A model of one input ``x`` and one output ``y``; numbers it holds, with what it makes of them; numbers it does
    not hold, each with how the error calls it; the range that the error tells."""

    dtype: DType
    build: Callable[[Any], Any]
    good: list[float]
    answer: list[float]
    bad: dict[float, str]
    held: str = ""


def _table(x: Any) -> Any:
    return op.gather(op.constant(np.arange(8, dtype=np.float32)), x, op.constant(np.int64(0)))


def _one(of: Any) -> Any:
    return op.constant(np.array(1, of))


LO, HI = -(2**31), 2**31 - 1
BAD_64: dict[float, str] = {HI + 1: "2147483648", LO - 1: "-2147483649", 2**40 + 1: "1099511627777"}
BAD_U64: dict[float, str] = {HI + 1: "2147483648", 2**63: "9223372036854775808", 2**32: "4294967296"}
BAD_F64: dict[float, str] = {1e300: "1e+300", -HUGE: "-3.402823669209385e+38", np.inf: "inf", -np.inf: "-inf"}
CASES = {
    "add": Case(DType.INT64, lambda x: op.add(x, _one(np.int64)), [5, LO, HI - 1], [6, LO + 1, HI], BAD_64,
                INT32.format("INT64")),
    "identity": Case(DType.INT64, ov.opset16.identity, [LO, HI], [LO, HI], BAD_64, INT32.format("INT64")),
    "cast": Case(DType.INT64, lambda x: op.convert(x, "i32"), [LO, HI], [LO, HI], BAD_64, INT32.format("INT64")),
    "indices": Case(DType.INT64, _table, [0, 7], [0, 7], {2**32 + 1: "4294967297"}, INT32.format("INT64")),
    "equal": Case(DType.INT64, lambda x: op.equal(x, op.constant(2**24)), [2**24, 2**24 - 1], [1, 0],
                  {2**24 + 1: "16777217"}, IN_FLOAT32.format("Equal", "INT64")),
    "padding": Case(DType.INT64, lambda x: op.equal(x, op.constant(256)), [256, HI, LO], [1, 0, 0], BAD_64,
                    INT32.format("INT64")),
    "remainder": Case(DType.INT32, lambda x: op.mod(x, op.constant(np.int32(7))), [2**24, -8], [1, -1],
                      {2**24 + 1: "16777217", LO: "-2147483648"}, IN_FLOAT32.format("Mod", "INT32")),
    "unsigned": Case(DType.UINT64, lambda x: op.add(x, _one(np.uint64)), [0, HI - 1], [1, HI], BAD_U64,
                     UNSIGNED.format("UINT64")),
    "largest": Case(DType.UINT32, lambda x: op.maximum(x, _one(np.uint32)), [0, HI], [1, HI],
                    {HI + 1: "2147483648", 2**32 - 1: "4294967295"}, UNSIGNED.format("UINT32")),
    "double": Case(DType.FP64, lambda x: op.multiply(x, op.constant(2.0)), [0.5, -HALF, 1e-300], [1, -2 * HALF, 0],
                   BAD_F64, FLOAT32),
    "narrowed": Case(DType.FP64, lambda x: op.convert(x, "f32"), [0.5, -HALF], [0.5, -HALF], BAD_F64, FLOAT32),
    # What is handed on untouched, turned into float32 right away or the same bits either way is right throughout.
    "same": Case(DType.INT64, lambda x: x, [2**63 - 1, 2**40 + 1], [2**63 - 1, 2**40 + 1], {}),
    "same-double": Case(DType.FP64, lambda x: x, [1e300, np.inf, 0.1], [1e300, np.inf, 0.1], {}),
    "float": Case(DType.INT64, lambda x: op.convert(x, "f32"), [2**62, -(2**40)], [2**62, -(2**40)], {}),
    "wider": Case(DType.UINT64, lambda x: op.convert(x, "f64"), [2**63, 2**40], [2**63, 2**40], {}),
    "reversed": Case(DType.UINT32, lambda x: op.gather(x, op.constant([1, 0]), op.constant(0)), [2**32 - 1, 2**31],
                     [2**31, 2**32 - 1], {}),
    "plain": Case(DType.INT32, lambda x: op.add(x, _one(np.int32)), [LO, HI - 1], [LO + 1, HI], {}),
    "bytes": Case(DType.UINT8, lambda x: op.add(x, _one(np.uint8)), [0, 254], [1, 255], {}),
}  # fmt: skip
REFUSING = {name: case for name, case in CASES.items() if case.bad}


def _built(case: Case) -> "ov.Model":
    x = parameter([-1], models._ELEMENT_TYPES[case.dtype])
    y = case.build(x)
    return small.identity([-1], models._ELEMENT_TYPES[case.dtype]) if y is x else small.model({"y": y}, [x])


def _sums() -> "ov.Model":
    """``x`` INT64 [rows,1], ``before`` INT64 [rows,1] -> ``total``, their sum."""
    x, before = parameter([-1, 1], ov.Type.i64), parameter([-1, 1], ov.Type.i64, "before")
    return small.model({"total": op.add(x, before)}, [x, before])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, case in CASES.items():
        models.save(_built(case), root, name)
    models.save(_built(CASES["add"]), root, "accepting", settings="[numbers]\nout_of_range = 'accept'\n")
    doubled = small.model({"y": op.add(x := parameter([-1, 1], ov.Type.i64), x)}, [x])
    models.save(doubled, root, "batched", settings="[batching]\nmax_size = 8\nmax_delay = 0.2\n")
    fixed = small.model({"y": op.add(x := parameter([4], ov.Type.i64), x)}, [x])
    for path in ("inline", "sync", "async"):
        models.save(fixed, root, path, settings=f"[execution]\npath = '{path}'\n")
    state = "[batching]\nmax_size = 4\n[sequences.state.before]\noutput = 'total'\n"
    models.save(_sums(), root, "sums", settings=state)
    models.save(_sums(), root, "far", settings=f"{state}initial = 3e9\n")
    return root


@pytest.fixture(scope="module", params=["copy", "mapped"])
def server(request: pytest.FixtureRequest, repository: Path, cache_dir: Path) -> Iterator[Daemon]:
    flags = ["--cache-dir", str(cache_dir), "--preflight", "off", "--shared-memory", request.param]
    with Daemon(repository, *flags) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


Answer = Array | tuple[grpc.StatusCode, str]
Infer = Callable[[grpc.aio.Channel, str, Array], Awaitable[Answer]]
_NUMPY = {dtype.wire: dtype.numpy for dtype in DType}
_DTYPES = {case.dtype.numpy: case.dtype for case in CASES.values()}


def _array(response: pb.ModelInferResponse) -> Array:
    return np.frombuffer(response.raw_output_contents[0], _NUMPY[response.outputs[0].datatype])


async def _asked(channel: grpc.aio.Channel, message: pb.ModelInferRequest | bytes) -> Answer:
    call = method(channel, "ModelInfer")(message)
    return _array(await call) if await call.code() is OK else await outcome(call)


async def raw(channel: grpc.aio.Channel, model: str, x: Array) -> Answer:
    return await _asked(channel, request(model, {"x": x}))


async def typed(channel: grpc.aio.Channel, model: str, x: Array) -> Answer:
    message = pb.ModelInferRequest(model_name=model)
    item = message.inputs.add(name="x", datatype=_DTYPES[x.dtype].wire, shape=x.shape)
    getattr(item.contents, CONTENTS[_DTYPES[x.dtype]]).extend(x.tolist())
    return await _asked(channel, message)


async def repeated(channel: grpc.aio.Channel, model: str, x: Array) -> Answer:
    """Like one before it, which was good: not parsed again."""
    assert isinstance(await raw(channel, model, np.zeros_like(x)), np.ndarray)
    return await raw(channel, model, x)


async def streamed(channel: grpc.aio.Channel, model: str, x: Array) -> Answer:
    """The second of three on one stream, of which the others are good."""
    good = request(model, {"x": np.zeros_like(x)})

    async def three() -> Any:
        for message in (good, request(model, {"x": x}), good):
            yield message

    answers = [answer async for answer in method(channel, "ModelStreamInfer")(three())]
    assert [answers[0].error_message, answers[2].error_message] == ["", ""]
    if problem := answers[1].error_message:
        assert problem.startswith("[INVALID_ARGUMENT]: ")
        return grpc.StatusCode.INVALID_ARGUMENT, problem.removeprefix("[INVALID_ARGUMENT]: ")
    return _array(answers[1].infer_response)


async def shared(channel: grpc.aio.Channel, model: str, x: Array) -> Answer:
    """In the client's memory, after one that was good."""
    with shared_object(4096) as made:
        register = pb.SystemSharedMemoryRegisterRequest(name="r", key=made.key, byte_size=4096)
        await method(channel, "SystemSharedMemoryRegister")(register)
        try:
            message = pb.ModelInferRequest(model_name=model)
            item = message.inputs.add(name="x", datatype=_DTYPES[x.dtype].wire, shape=x.shape)
            item.parameters["shared_memory_region"].string_param = "r"
            item.parameters["shared_memory_byte_size"].int64_param = x.nbytes
            assert isinstance(await _asked(channel, message), np.ndarray)
            made.write(x.tobytes())
            return await _asked(channel, message)
        finally:
            await method(channel, "SystemSharedMemoryUnregister")(pb.SystemSharedMemoryUnregisterRequest(name="r"))


PATHS: dict[str, Infer] = {f.__name__: f for f in (raw, typed, repeated, streamed, shared)}


def ask(server: Daemon, infer: Infer, model: str, x: Array) -> Answer:
    async def run() -> Answer:
        async with connect(server.grpc) as channel:
            return await infer(channel, model, x)

    return asyncio.run(run())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", REFUSING)
def test_what_the_device_does_not_hold_is_refused_by_input_number_place_and_range(
    server: Daemon, name: str, path: str
) -> None:
    case = CASES[name]

    for number, shown in case.bad.items():
        x = np.array([case.good[0], number, case.good[1]], case.dtype.numpy)
        expected = f"model '{name}': input 'x': element [1] is {shown}, outside {case.held}"
        assert ask(server, PATHS[path], name, x) == (grpc.StatusCode.INVALID_ARGUMENT, expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", CASES)
def test_what_the_device_holds_is_computed_right(server: Daemon, name: str, path: str) -> None:
    case = CASES[name]

    found = ask(server, PATHS[path], name, np.array(case.good, case.dtype.numpy))

    assert isinstance(found, np.ndarray), found
    assert found.tolist() == np.array(case.answer, found.dtype).tolist()


def test_nothing_is_in_range(server: Daemon) -> None:
    assert ask(server, raw, "double", np.array([np.nan, 1.0]))[1] == 2.0


@pytest.mark.parametrize("path", ["inline", "sync", "async"])
def test_it_is_refused_however_runs_are_made(server: Daemon, path: str) -> None:
    found = ask(server, repeated, path, np.array([0, 1, 2, 2**40]))

    held = INT32.format("INT64")
    said = f"model '{path}': input 'x': element [3] is 1099511627776, outside {held}"
    assert found == (grpc.StatusCode.INVALID_ARGUMENT, said)


def test_a_model_may_accept_what_comes(server: Daemon) -> None:
    assert list(ask(server, raw, "accepting", np.array([2**40 + 1, 4]))) == [2, 5]


def test_a_number_out_of_range_is_not_batched_with_others(server: Daemon) -> None:
    async def together() -> list[Answer]:
        async with connect(server.grpc) as channel:
            rows = [np.array([[n]]) for n in (1, 2**32 + 5, 3)]
            return await asyncio.gather(*(raw(channel, "batched", row) for row in rows))

    first, second, third = asyncio.run(together())

    assert (list(first), list(third)) == ([2], [6])
    held = INT32.format("INT64")
    said = f"model 'batched': input 'x': element [0,0] is 4294967301, outside {held}"
    assert second == (grpc.StatusCode.INVALID_ARGUMENT, said)


def test_a_sequence_goes_on_after_a_number_was_refused(server: Daemon) -> None:
    def step(number: int, **more: bool) -> pb.ModelInferRequest:
        return request("sums", {"x": np.array([[number]])}, parameters=flags(7, **more))

    async def sequence() -> list[Answer]:
        async with connect(server.grpc) as channel:
            steps = [step(5, start=True), step(2**31), step(HI - 5, end=True)]
            for message in steps:
                message.outputs.add(name="total")
            return [await _asked(channel, message) for message in steps]

    begun, refused, ended = asyncio.run(sequence())

    assert (list(begun), list(ended)) == ([5], [HI])
    assert isinstance(refused, tuple)
    assert refused[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_state_that_a_client_sends_itself_is_held_to_the_same(server: Daemon) -> None:
    async def alone() -> Answer:
        async with connect(server.grpc) as channel:
            return await _asked(channel, request("sums", {"x": np.array([[1]]), "before": np.array([[-(2**33)]])}))

    held = INT32.format("INT64")
    said = f"model 'sums': input 'before': element [0,0] is -8589934592, outside {held}"
    assert asyncio.run(alone()) == (grpc.StatusCode.INVALID_ARGUMENT, said)


def test_state_can_not_begin_with_such_a_number(server: Daemon) -> None:
    [broken] = [event for event in server.events("model load failed") if event["model"] == "far"]

    assert "sequences.state.before.initial: 3e+09 is out of range: CPU computes INT64 in 32 bits" in broken["problem"]
    assert "-2147483648..2147483647" in broken["problem"]


# -- what is said of a model ----------------------------------------------------------

SAID = {
    "add": (
        "input 'x' holds -2147483648..2147483647 (CPU computes INT64 in 32 bits); others are refused",
        "CPU computes INT64 inside of the model as INT32; overflows there go undetected",
    ),
    "accepting": (
        "input 'x' holds -2147483648..2147483647 (CPU computes INT64 in 32 bits); others are computed wrong",
        "CPU computes INT64 inside of the model as INT32; overflows there go undetected",
    ),
    "plain": (),
}


@pytest.mark.parametrize("name", SAID)
def test_metadata_and_log_say_what_the_device_does_not_hold(server: Daemon, name: str) -> None:
    async def properties() -> dict[str, str]:
        async with connect(server.grpc) as channel:
            answer = await method(channel, "ModelMetadata")(pb.ModelMetadataRequest(name=name))
            return dict(answer.properties)

    told = asyncio.run(properties())
    logged = [event for event in server.events("model narrows numbers") if event["model"] == name]

    if not SAID[name]:
        assert (logged, "numbers" in told) == ([], False)
        return
    assert told["numbers"] == "; ".join(SAID[name])
    assert told["numbers.out_of_range"] == ("accept" if name == "accepting" else "refuse")
    assert [event["remarks"] for event in logged] == [list(SAID[name])]


def test_check_says_it_without_serving(repository: Path) -> None:
    command = [sys.executable, "-m", "inferd", "check", "--model-repository", str(repository)]
    command += ["--preflight", "off"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1, done.stderr
    text = done.stdout
    for name, said in SAID.items():
        of_model = text.split(f"ok      {name}: ")[1].split("\nok ")[0].splitlines()
        assert [line for line in of_model if " numbers: " in line] == [f"        version 1 numbers: {s}" for s in said]
    assert "broken  far: far/model.toml: sequences.state.before.initial: 3e+09 is out of range: CPU computes" in text
