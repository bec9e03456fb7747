"""Empty tensors on every way in and out, and operations of a model on empty data."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import grpc
import numpy as np
import numpy.typing as npt
import pytest

from inferd._pb import open_inference_pb2 as pb
from inferd.tensors import BY_WIRE_NAME, DType
from tests import empty_models, models
from tests.empty_cases import GIVEN_EMPTY, LEFT_UNWRITTEN, Case
from tests.empty_models import Feed
from tests.shared_memory.objects import shared_object
from tests.system import clients, wire
from tests.system.daemon import Daemon
from tests.system.wire import request

pytestmark = pytest.mark.system

Code = grpc.StatusCode
P = ParamSpec("P")
Array = npt.NDArray[Any]

# Answers whether rows are batched, and takes tensors with no columns.
_BATCHED = '[batching]\nmax_size = 8\n[shapes]\nleft = ["?", "?"]\nright = ["?", "?"]\n'


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[Daemon]:
    """Serves the cases, each also with runs side by side, and models that take anything."""
    root = tmp_path_factory.mktemp("models")
    for case in (*LEFT_UNWRITTEN, *GIVEN_EMPTY):
        case.write(root / case.name / "1")
    for case in LEFT_UNWRITTEN:
        case.write(root / f"{case.name}-side-by-side" / "1")
        (root / f"{case.name}-side-by-side" / "model.toml").write_text("[execution]\nstreams = 2\n")
    empty_models.stateful_loop(root / "stateful" / "1")
    for dtype in DType:
        models.save(models.identity(dtype, [-1, 3]), root, f"any-{dtype.wire}")
    models.save(models.negative([-1, 3]), root, "negative")
    models.save(models.sum_and_difference([-1, -1]), root, "batched", settings=_BATCHED)
    models.save(models.negative([-1, 3]), root, "bounded", settings='[shapes]\nx = ["1..", 3]\n')
    flags = ("--cache-dir", str(cache_dir), "--preflight", "off", "--shared-memory", "mapped")
    with Daemon(root, *flags) as daemon:
        yield daemon
    assert daemon.stop() == 0, daemon.log()


def connected(test: "Callable[P, Coroutine[Any, Any, None]]") -> Callable[P, None]:
    """``test`` on an event loop of its own."""

    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def outputs(answer: pb.ModelInferResponse) -> dict[str, Array]:
    """The tensors of an answer; BYTES as what they are on the wire."""
    found = {}
    for item, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        dtype = BY_WIRE_NAME[item.datatype]
        kind = np.uint8 if dtype is DType.BYTES else dtype.numpy
        found[item.name] = np.frombuffer(raw, kind).reshape(tuple(item.shape))
    return found


def check(case: Case, seen: dict[str, Array]) -> None:
    assert case.right is not None
    assert seen.keys() == case.right.keys()
    for name, right in case.right.items():
        np.testing.assert_array_equal(seen[name], np.asarray(right), name)


# -- nothing to work on ---------------------------------------------------------------


async def _asked(infer: Any, model: str, case: Case, feed: Feed) -> None:
    call = infer(request(model, feed))
    if case.right is not None:
        check(case, outputs(await call))
        return
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    assert refused.value.code() is Code.INVALID_ARGUMENT
    assert case.names in str(refused.value.details())


@pytest.mark.parametrize("case", [*LEFT_UNWRITTEN, *GIVEN_EMPTY], ids=str)
@connected
async def test_no_answer_has_what_another_request_left(case: Case, daemon: Daemon) -> None:
    async with wire.connect(daemon.grpc) as channel:
        infer = wire.method(channel, "ModelInfer")
        for _ in range(3):
            await infer(request(case.name, case.other))
            await _asked(infer, case.name, case, case.empty)


@pytest.mark.parametrize("case", LEFT_UNWRITTEN, ids=str)
@connected
async def test_nor_have_answers_of_runs_side_by_side(case: Case, daemon: Daemon) -> None:
    model = f"{case.name}-side-by-side"
    async with wire.connect(daemon.grpc) as channel:
        infer = wire.method(channel, "ModelInfer")
        for _ in range(3):
            others = [infer(request(model, case.other)) for _ in range(4)]
            await asyncio.gather(*(_asked(infer, model, case, case.empty) for _ in range(4)), *others)


@connected
async def test_a_loop_of_no_turns_leaves_a_sequence_s_state_as_it_is(daemon: Daemon) -> None:
    async with wire.connect(daemon.grpc) as channel:
        infer = wire.method(channel, "ModelInfer")
        seen = []
        for step, turns in enumerate((2, 0, 1)):
            feed = {"turns": np.array(turns, np.int64), "x": np.array([1, 10], np.float32)}
            parameters = {"sequence_id": 5, "sequence_start": step == 0, "sequence_end": step == 2}
            seen.append(outputs(await infer(request("stateful", feed, parameters=parameters)))["all"].tolist())
    assert seen == [[[1, 10], [2, 20]], [], [[3, 30]]]


# -- tensors of no elements, on every way ----------------------------------------------


def _message(dtype: DType, *, raw: bool = True) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=f"any-{dtype.wire}", id="empty")
    message.inputs.add(name="x", datatype=dtype.wire, shape=[0, 3])
    if raw:
        message.raw_input_contents.append(b"")
    return message


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("dtype", DType, ids=lambda t: t.wire)
@connected
async def test_every_type_has_tensors_of_no_elements(dtype: DType, raw: bool, daemon: Daemon) -> None:
    async with wire.connect(daemon.grpc) as channel:
        infer = wire.method(channel, "ModelInfer")
        # Again and again: from the second on it is known by its head.
        for _ in range(3):
            answer = await infer(_message(dtype, raw=raw))
            assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [("x", dtype.wire, [0, 3])]
            assert list(answer.raw_output_contents) == [b""]
            assert answer.id == "empty"


@connected
async def test_they_are_answered_in_turns_with_others_on_a_stream(daemon: Daemon) -> None:
    shapes = [(2, 3), (0, 3), (1, 3), (0, 3), (3, 3)]
    async with wire.connect(daemon.grpc) as channel:
        call = wire.method(channel, "ModelStreamInfer")()
        for place, shape in enumerate(shapes):
            await call.write(request("negative", {"x": np.full(shape, place, np.float32)}, str(place)))
        await call.done_writing()
        seen = [item.infer_response async for item in call]
    for place, (shape, answer) in enumerate(zip(shapes, seen, strict=True)):
        assert answer.id == str(place)
        np.testing.assert_array_equal(outputs(answer)["y"], np.full(shape, -place, np.float32))


@connected
async def test_rows_without_columns_are_batched_with_none_that_have_some(daemon: Daemon) -> None:
    shapes = [(1, 2), (2, 0), (1, 0), (3, 2), (1, 0)]
    async with wire.connect(daemon.grpc) as channel:
        infer = wire.method(channel, "ModelInfer")
        for _ in range(3):
            feeds = [{"left": np.full(s, i, np.float32), "right": np.ones(s, np.float32)} for i, s in enumerate(shapes)]
            answers = await asyncio.gather(*(infer(request("batched", feed)) for feed in feeds))
            for place, (shape, answer) in enumerate(zip(shapes, answers, strict=True)):
                np.testing.assert_array_equal(outputs(answer)["sum"], np.full(shape, place + 1, np.float32))


@connected
async def test_shared_memory_holds_them_in_no_bytes(daemon: Daemon) -> None:
    with shared_object(64) as memory:
        memory.write(b"\7" * 64)
        async with wire.connect(daemon.grpc) as channel:
            await wire.method(channel, "SystemSharedMemoryRegister")(
                pb.SystemSharedMemoryRegisterRequest(name="none", key=memory.key, byte_size=64)
            )
            infer = wire.method(channel, "ModelInfer")
            for _ in range(3):
                message = pb.ModelInferRequest(model_name="negative")
                item = message.inputs.add(name="x", datatype="FP32", shape=[0, 3])
                wanted = message.outputs.add(name="y")
                for tensor in (item, wanted):
                    tensor.parameters["shared_memory_region"].string_param = "none"
                    tensor.parameters["shared_memory_byte_size"].int64_param = 0
                answer = await infer(message)
                assert list(answer.outputs[0].shape) == [0, 3]
                assert answer.outputs[0].parameters["shared_memory_byte_size"].int64_param == 0
            await wire.method(channel, "SystemSharedMemoryUnregister")(
                pb.SystemSharedMemoryUnregisterRequest(name="none")
            )
        assert memory.read(64) == b"\7" * 64


@pytest.mark.parametrize(
    ("model", "feed", "says"),
    [
        ("bounded", {"x": np.zeros((0, 3), np.float32)}, "input 'x' must have shape [1..,3], got [0,3]"),
        ("negative", {"x": np.zeros((2, 0), np.float32)}, "input 'x' must have shape [?,3], got [2,0]"),
        (
            "batched",
            {"left": np.zeros((0, 2), np.float32), "right": np.zeros((0, 2), np.float32)},
            "input 'left' must have shape [1..8,?], got [0,2]",
        ),
    ],
    ids=["bounded", "fixed", "batch"],
)
@connected
async def test_a_dimension_with_a_lower_bound_is_not_0(model: str, feed: Feed, says: str, daemon: Daemon) -> None:
    async with wire.connect(daemon.grpc) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await wire.method(channel, "ModelInfer")(request(model, feed))
    assert refused.value.code() is Code.INVALID_ARGUMENT
    assert says in str(refused.value.details())


def test_other_projects_clients_send_and_get_them(daemon: Daemon) -> None:
    script = """
import json, sys
import numpy as np
import tritonclient.grpc as triton
client = triton.InferenceServerClient(sys.argv[1])
seen = []
for model, name, array, kind in (
    ("negative", "x", np.zeros((0, 3), np.float32), "FP32"),
    ("any-BYTES", "x", np.zeros((0, 3), np.object_), "BYTES"),
):
    given = triton.InferInput(name, list(array.shape), kind)
    given.set_data_from_numpy(array)
    answer = client.infer(model, [given])
    seen.append([list(o.shape) for o in answer.get_response().outputs])
print(json.dumps(seen))
"""
    assert clients.run(script, daemon.grpc) == [[[0, 3]], [[0, 3]]]
