"""Requests with tensors in shared memory, served from a template: they mean, write and answer what parsed ones do."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd._pb import open_inference_pb2 as pb
from inferd.errors import InvalidRequest
from inferd.requests import Request
from inferd.rpc import codec, shm_params, wire
from inferd.rpc.parameters import NO_PARAMETERS, Parameters
from inferd.rpc.request_templates import RequestSpec, RequestTemplate, TemplateCache
from inferd.shared_memory.regions import Span, check_span
from inferd.tensors import Dim, DType, Placed, Shape, Signature, Tensor, TensorSpec
from tests.replies import Answer
from tests.rpc.test_shm_params import Region, at

SIZE = 4096
numeric = st.sampled_from([t for t in DType if t not in (DType.BOOL, DType.BYTES)])
shapes = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)


class Client:
    """One region, r, and how requests locate it."""

    def __init__(self) -> None:
        self.region = Region(SIZE)

    def place(self, span: Span) -> Placed:
        check_span("region 'r'", span.offset, span.nbytes, SIZE)
        return Placed(*span, self.region)


@dataclass
class Case:
    """A request, and the outputs of its run."""

    signature: Signature
    message: pb.ModelInferRequest
    results: dict[int, Tensor]


def _spec(name: str, dtype: DType, shape: Shape, *, fixed: bool) -> TensorSpec:
    dims = tuple(Dim(n, n) if fixed else Dim(0, None) for n in shape)
    return TensorSpec(name, dtype, dims, frozenset({f"{name}:0"}))


def _bytes(shape: Shape, dtype: DType) -> int:
    return int(np.prod(shape)) * dtype.itemsize


@st.composite
def cases(draw: st.DrawFn) -> Case:
    message = pb.ModelInferRequest(model_name="m", id=draw(st.text(max_size=5)))
    inputs, outputs, results = [], [], {}
    described = draw(st.lists(st.tuples(numeric, shapes), max_size=3))
    for n, (dtype, shape) in enumerate(described):
        # A batch of 0 is refused.
        inputs.append((_spec(f"x{n}", dtype, (1, *shape), fixed=draw(st.booleans())), (1, *shape)))
    for spec, shape in draw(st.permutations(inputs)):
        name = draw(st.sampled_from([spec.name, *spec.aliases]))
        item = message.inputs.add(name=name, datatype=spec.dtype.wire, shape=shape)
        nbytes = _bytes(shape, spec.dtype)
        if draw(st.booleans()):
            at(item.parameters, draw(st.none() | st.integers(0, SIZE - nbytes)), nbytes)
        else:
            if draw(st.booleans()):
                item.parameters["binary_data"].bool_param = True
            message.raw_input_contents.append(draw(st.randoms()).randbytes(nbytes))
    for n, (dtype, shape) in enumerate(draw(st.lists(st.tuples(numeric, shapes), min_size=1, max_size=3))):
        outputs.append(_spec(f"y{n}", dtype, shape, fixed=draw(st.booleans())))
        results[n] = _result(draw, dtype, shape)
    wanted = draw(st.permutations(range(len(outputs))))[: draw(st.integers(0, len(outputs)))]
    for index in wanted:
        item = message.outputs.add(name=outputs[index].name)
        nbytes = _bytes(results[index].shape, results[index].dtype)
        if draw(st.booleans()):
            room = nbytes + draw(st.integers(0, 8))
            at(item.parameters, draw(st.none() | st.integers(0, SIZE - room)), room)
    return Case(Signature(tuple(spec for spec, _ in inputs), tuple(outputs)), message, results)


def _result(draw: st.DrawFn, dtype: DType, shape: Shape) -> Tensor:
    """As the engine returns it: a view, of rows that may not be contiguous."""
    values = np.frombuffer(draw(st.randoms()).randbytes(2 * _bytes(shape, dtype)), np.uint8)
    array = values.reshape(*shape, 2 * dtype.itemsize).view(np.dtype(f"V{dtype.itemsize}"))
    rows = array[..., 0] if draw(st.booleans()) else np.ascontiguousarray(array[..., 0])
    return Tensor(dtype, shape, memoryview(rows.view(dtype.numpy) if dtype is not DType.BF16 else rows.view(np.uint16)))


def parsed(client: Client, case: Case) -> tuple[tuple[Tensor, ...], tuple[int, ...], shm_params.ShmBindings]:
    bindings = shm_params.ShmBindings(client.place)
    inputs = codec.decode_inputs(case.message, case.signature, bindings=bindings)
    return inputs, codec.decode_outputs(case.message, case.signature, bindings=bindings), bindings


def template_of(
    client: Client, case: Case, parameters: Parameters = NO_PARAMETERS
) -> tuple[RequestTemplate, wire.SplitRequest]:
    templates = TemplateCache()
    split = wire.split_request(case.message.SerializeToString())
    assert split is not None
    inputs, outputs, bindings = parsed(client, case)
    templates.keep(
        split,
        case.message,
        case.signature,
        inputs,
        RequestSpec(outputs, parameters, 1, None),
        ("m", "1"),
        bindings.into,
    )
    found = templates.get(split.head)
    assert found is not None
    return found, split


def written(case: Case, indexes: Sequence[int], into: shm_params.OutputBindings, in_place: bool) -> list[Tensor]:
    """The outputs of a run; ``in_place`` it computes what it can into shared memory."""
    there = dict(into)
    given = []
    for index in indexes:
        tensor = case.results[index]
        if in_place and index in there and case.signature.outputs[index].static_shape is not None:
            there[index].write(codec.raw_bytes(tensor))
            tensor = Tensor(tensor.dtype, tensor.shape, there[index])
        given.append(tensor)
    return given


@given(cases(), st.booleans(), st.booleans())
def test_a_templated_request_equals_a_parsed_one(case: Case, in_place: bool, final: bool) -> None:
    client = Client()
    like, split = template_of(client, case, Parameters(final_response=final))
    inputs, indexes, bindings = parsed(client, case)

    found = tuple(map(client.place, like.spans))
    given = like.tensors(split.contents, found)
    assert given is not None
    assert [(t.dtype, t.shape) for t in given] == [(t.dtype, t.shape) for t in inputs]
    for one, other in zip(given, inputs, strict=True):
        if isinstance(other.data, Placed):
            assert one.data == other.data
        else:
            assert bytes(one.data) == other.data  # type: ignore[arg-type]
    assert (like.shared, like.into(found)) == (bindings.shared, bindings.into)

    specs = [case.signature.outputs[i] for i in indexes]
    request = Request("m", 1, inputs, indexes, Answer(), id=case.message.id, into=bindings.into)
    outputs = written(case, indexes, bindings.into, in_place)
    expected = shm_params.answer("m", "1", request, specs, outputs, codec.raw_bytes)
    if final:
        expected.parameters["triton_final_response"].bool_param = True
    wanted, client.region.data[:] = bytes(client.region.data), bytes(SIZE)
    # Twice: the layout is reused.
    for _ in range(2):
        outputs = written(case, indexes, bindings.into, in_place)
        parts, nbytes = like.answer(case.message.id, outputs, like.into(found))
        encoded = wire.as_unary(parts, nbytes)
        assert pb.ModelInferResponse.FromString(encoded) == expected
        assert nbytes == len(encoded)
        assert client.region.data == wanted
    if like.answer_bytes is not None:
        assert like.answer_bytes == sum(map(len, expected.raw_output_contents))


def asked(room: int) -> Case:
    """A request for an output of open size, into ``room`` bytes."""
    message = pb.ModelInferRequest(model_name="m")
    at(message.outputs.add(name="y").parameters, 8, room)
    spec = TensorSpec("y", DType.FP32, (Dim(0, None),))
    return Case(Signature((), (spec,)), message, {})


def floats(count: int) -> list[Tensor]:
    return [Tensor(DType.FP32, (count,), memoryview(np.ones(count, np.float32)))]


def test_an_output_of_open_size_is_described_and_must_fit_each_time() -> None:
    client = Client()
    like, _ = template_of(client, asked(12))
    into = like.into(tuple(map(client.place, like.spans)))
    for count in (1, 3, 0, 2):
        answer = pb.ModelInferResponse.FromString(wire.as_unary(*like.answer("", floats(count), into)))
        assert list(answer.outputs[0].shape) == [count]
        assert answer.outputs[0].parameters[shm_params.NBYTES].int64_param == 4 * count
    client.region.data[:] = bytes(SIZE)
    for _ in range(2):
        with pytest.raises(InvalidRequest) as refused:
            like.answer("", floats(4), into)
        assert str(refused.value) == "model 'm': output 'y' is 16 bytes; its shared_memory_byte_size is 12"
    assert not any(client.region.data)


def test_nothing_of_a_clients_memory_is_kept_with_a_head() -> None:
    client = Client()
    case = asked(12)
    item = case.message.inputs.add(name="x", datatype="FP32", shape=[2])
    at(item.parameters, 0, 8)
    case.signature = Signature((TensorSpec("x", DType.FP32, (Dim(2, 2),)),), case.signature.outputs)
    like, _ = template_of(client, case)
    assert like.spans == (Span("r", 0, 8), Span("r", 8, 12))
    assert not any(isinstance(getattr(like, name), Placed) for name in RequestTemplate.__slots__)
    assert all(not isinstance(part, Placed) for one in like.inputs for part in one)


@pytest.mark.parametrize("dtype", [DType.BOOL, DType.BYTES])
def test_inputs_that_need_a_check_get_no_template_there_either(dtype: DType) -> None:
    client = Client()
    client.region.data[:5] = b"\1\0\0\0a"
    message = pb.ModelInferRequest(model_name="m")
    at(message.inputs.add(name="x", datatype=dtype.wire, shape=[1]).parameters, 0, 5 if dtype is DType.BYTES else 1)
    signature = Signature((TensorSpec("x", dtype, (Dim(1, 1),)),), ())
    split = wire.split_request(message.SerializeToString())
    assert split is not None
    inputs, outputs, bindings = parsed(client, Case(signature, message, {}))
    templates = TemplateCache()
    asked = RequestSpec(outputs, NO_PARAMETERS, 1, None)
    templates.keep(split, message, signature, inputs, asked, ("m", "1"), bindings.into)
    assert templates.get(split.head) is None
