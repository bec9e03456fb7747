"""Decoding and encoding: which requests are refused, with which sentence, and that all other bytes stay the same."""

import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from inferd._pb import open_inference_pb2 as pb
from inferd.errors import InvalidRequest
from inferd.rpc import codec
from inferd.rpc.parameters import MAX_PARAMETERS, MAX_REQUEST_ID, Parameters
from inferd.rpc.parameters import decode as decode_parameters
from inferd.tensors import BY_WIRE_NAME, Dim, DType, Signature, Tensor, TensorSpec, elements
from tests.rpc.messages import encoded

ROWS = Dim(1, 8)
PIXELS = TensorSpec("pixels", DType.FP32, (ROWS, Dim(2, 2)), frozenset({"image:0"}))
LEVEL = TensorSpec("level", DType.INT8, (ROWS, Dim(1, 1)))
SCORES = TensorSpec("scores", DType.FP32, (ROWS, Dim(3, 3)), frozenset({"scores:0"}))
LABELS = TensorSpec("labels", DType.BYTES, (ROWS,))
SIGNATURE = Signature((PIXELS, LEVEL), (SCORES, LABELS), max_batch=8)

Change = Callable[[pb.ModelInferRequest], object]

PARAMETERS = "timeout, priority, sequence_id, sequence_start, sequence_end, triton_enable_empty_final_response"


def good(rows: int = 1) -> pb.ModelInferRequest:
    """A valid request for :data:`SIGNATURE`."""
    message = pb.ModelInferRequest(model_name="m", id="7")
    message.inputs.add(name="pixels", datatype="FP32", shape=[rows, 2])
    message.inputs.add(name="level", datatype="INT8", shape=[rows, 1])
    message.raw_input_contents.extend([bytes(8 * rows), bytes(rows)])
    return message


def typed() -> pb.ModelInferRequest:
    """The same with typed contents."""
    message = good()
    del message.raw_input_contents[:]
    message.inputs[0].contents.fp32_contents.extend([0.0, 0.0])
    message.inputs[1].contents.int_contents.append(0)
    return message


def decode(
    message: pb.ModelInferRequest, signature: Signature = SIGNATURE
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """All the steps of a request before it waits."""
    decode_parameters(message)
    inputs = codec.decode_inputs(message, signature)
    codec.rows(message.model_name, inputs, signature)
    return inputs, codec.decode_outputs(message, signature)


def one(dtype: DType, shape: list[int] | None = None) -> Signature:
    """A model with one input and one output of ``dtype``; of any shape, or only of ``shape``."""
    dims = None if shape is None else tuple(Dim(n, n) for n in shape)
    return Signature((TensorSpec("x", dtype, dims),), (TensorSpec("y", dtype, dims),))


def asking(dtype: str, shape: list[int], raw: bytes | None = None) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype=dtype, shape=shape)
    if raw is not None:
        message.raw_input_contents.append(raw)
    return message


# -- refusals ---------------------------------------------------------------------


def _set(path: str, value: object) -> Change:
    """Sets a field such as ``inputs.0.name``; a list replaces the whole of a repeated one."""

    def change(message: pb.ModelInferRequest) -> None:
        *steps, last = path.split(".")
        target: object = message
        for step in steps:
            target = target[int(step)] if step.isdecimal() else getattr(target, step)  # type: ignore[index]
        if isinstance(value, list):
            getattr(target, last)[:] = value
        else:
            setattr(target, last, value)

    return change


def _parameter(key: str, kind: str, value: object) -> Change:
    return lambda message: setattr(message.parameters[key], kind, value)


RAW_REFUSALS: list[tuple[Change, str]] = [
    (_set("inputs.0.name", "pixel"), "unknown input 'pixel'; inputs: pixels, level"),
    (_set("inputs.0.name", ""), "unknown input ''; inputs: pixels, level"),
    (_set("inputs.0.name", "a\nb"), "unknown input 'a b'; inputs: pixels, level"),
    (_set("inputs.1.name", "pixels"), "input 'pixels' is given twice"),
    (_set("inputs.1.name", "image:0"), "input 'pixels' is given twice"),
    (_set("inputs.0.datatype", "FP64"), "input 'pixels' must be FP32, got 'FP64'"),
    (_set("inputs.0.datatype", "fp32"), "input 'pixels' must be FP32, got 'fp32', which is not a type of the protocol"),
    (_set("inputs.0.datatype", ""), "input 'pixels' must be FP32, got '', which is not a type of the protocol"),
    (_set("inputs.0.shape", [1, 3]), "input 'pixels' must have shape [1..8,2], got [1,3]"),
    (_set("inputs.0.shape", [2]), "input 'pixels' must have shape [1..8,2], got [2]"),
    (_set("inputs.0.shape", []), "input 'pixels' must have shape [1..8,2], got []"),
    (_set("inputs.0.shape", [0, 2]), "input 'pixels' must have shape [1..8,2], got [0,2]"),
    (_set("inputs.0.shape", [9, 2]), "input 'pixels' must have shape [1..8,2], got [9,2]"),
    (_set("inputs.0.shape", [-1, 2]), "input 'pixels' must have shape [1..8,2], got [-1,2]"),
    (_set("inputs.0.shape", [2**63 - 1, 2]), f"input 'pixels' must have shape [1..8,2], got [{2**63 - 1},2]"),
    (_set("inputs.0.shape", [1] * 65), "input 'pixels' has 65 dimensions; at most 64 are allowed"),
    (
        _set("raw_input_contents", [b"1234567", b"1"]),
        "input 'pixels' of shape [1, 2] FP32 must be 8 bytes, got 7",
    ),
    (_set("raw_input_contents", [b"", b"1"]), "input 'pixels' of shape [1, 2] FP32 must be 8 bytes, got 0"),
    (_set("raw_input_contents", [bytes(8), b"12"]), "input 'level' of shape [1, 1] INT8 must be 1 bytes, got 2"),
    (
        lambda m: m.raw_input_contents.append(b""),
        "2 inputs come with 3 raw_input_contents; expected one each",
    ),
    (
        lambda m: m.raw_input_contents.pop(),
        "2 inputs come with 1 raw_input_contents; expected one each",
    ),
    (
        lambda m: m.inputs[0].contents.fp32_contents.append(1),
        "input 'pixels' has contents and raw_input_contents; expected one of them",
    ),
    (
        lambda m: (m.inputs.pop(), m.raw_input_contents.pop()),
        "input 'level' is missing; inputs: pixels, level",
    ),
    (
        lambda m: (m.inputs[1].shape.__setitem__(0, 2), m.raw_input_contents.__setitem__(1, b"12")),
        "inputs disagree on the batch size: 'pixels' 1, 'level' 2",
    ),
    (
        lambda m: setattr(m.inputs[0].parameters["shared_memory_region"], "string_param", "/dev/shm/x"),
        "input 'pixels': shared memory is not enabled on this server",
    ),
    (
        lambda m: setattr(m.inputs[0].parameters["shared_memory_colour"], "int64_param", 2),
        "input 'pixels': unknown parameter 'shared_memory_colour'; allowed: shared_memory_region, "
        "shared_memory_byte_size, shared_memory_offset",
    ),
    (lambda m: m.outputs.add(name="score"), "unknown output 'score'; outputs: scores, labels"),
    (
        lambda m: (m.outputs.add(name="scores"), m.outputs.add(name="scores:0")),
        "output 'scores' is requested twice",
    ),
    (
        lambda m: [m.outputs.add(name="scores") for _ in range(3)],
        "3 outputs are requested; the model has 2",
    ),
    (
        lambda m: setattr(m.outputs.add(name="labels").parameters["shared_memory_byte_size"], "int64_param", 2),
        "output 'labels': shared memory is not enabled on this server",
    ),
    (
        _parameter("sequence_begin", "int64_param", 1),
        "unknown request parameter 'sequence_begin'; allowed: " + PARAMETERS,
    ),
    (
        _parameter("sequence_x\ny", "int64_param", 1),
        "unknown request parameter 'sequence_x y'; allowed: " + PARAMETERS,
    ),
    *(
        (
            _parameter(key, kind, value),
            f"parameter '{key}' must be an integer of 0 or more (int64_param or uint64_param)",
        )
        for key in ("timeout", "priority")
        for kind, value in (("int64_param", -1), ("string_param", "5"), ("double_param", 5.0), ("bool_param", True))
    ),
    (
        lambda m: m.parameters["timeout"].SetInParent(),
        "parameter 'timeout' must be an integer of 0 or more (int64_param or uint64_param)",
    ),
]
TYPED_REFUSALS: list[tuple[Change, str]] = [
    (
        lambda m: m.inputs[0].contents.fp32_contents.append(1),
        "input 'pixels' of shape [1, 2] must have 2 elements, got 3",
    ),
    (
        lambda m: m.inputs[0].contents.Clear(),
        "input 'pixels' of shape [1, 2] must have 2 elements, got 0",
    ),
    (
        lambda m: m.inputs[0].contents.fp64_contents.append(1),
        "input 'pixels' is FP32: use fp32_contents, not fp32_contents, fp64_contents",
    ),
    (
        lambda m: (m.inputs[0].contents.Clear(), m.inputs[0].contents.int_contents.extend([1, 2])),
        "input 'pixels' is FP32: use fp32_contents, not int_contents",
    ),
    (_set("inputs.1.contents.int_contents", [128]), "input 'level': values must be -128..127 (INT8)"),
    (_set("inputs.1.contents.int_contents", [-129]), "input 'level': values must be -128..127 (INT8)"),
]


def _sentences(refusals: list[tuple[Change, str]]) -> list[str]:
    return [sentence[:60] for _, sentence in refusals]


@pytest.mark.parametrize(("spoil", "sentence"), RAW_REFUSALS, ids=_sentences(RAW_REFUSALS))
def test_an_invalid_request_is_refused_with_one_sentence(spoil: Change, sentence: str) -> None:
    message = good()
    decode(message)
    spoil(message)
    with pytest.raises(InvalidRequest) as refused:
        decode(message)
    assert str(refused.value) == f"model 'm': {sentence}"


@pytest.mark.parametrize(("spoil", "sentence"), TYPED_REFUSALS, ids=_sentences(TYPED_REFUSALS))
def test_invalid_typed_contents_are_refused_with_one_sentence(spoil: Change, sentence: str) -> None:
    message = typed()
    assert decode(message) == decode(good())
    spoil(message)
    with pytest.raises(InvalidRequest) as refused:
        decode(message)
    assert str(refused.value) == f"model 'm': {sentence}"


@pytest.mark.parametrize(
    ("dtype", "below", "above"),
    [(d, np.iinfo(d.numpy.name).min - 1, np.iinfo(d.numpy.name).max + 1) for d in (DType.INT8, DType.INT16)]
    + [(d, None, np.iinfo(d.numpy.name).max + 1) for d in (DType.UINT8, DType.UINT16)],
    ids=lambda value: getattr(value, "wire", None),
)
def test_small_integers_travel_in_wider_fields_and_must_fit(dtype: DType, below: int | None, above: int) -> None:
    for value in (below, above):
        if value is None:
            continue  # the field itself is unsigned
        message = asking(dtype.wire, [1])
        getattr(message.inputs[0].contents, codec.CONTENTS[dtype]).append(value)
        with pytest.raises(InvalidRequest, match=rf"input 'x': values must be -?\d+\.\.\d+ \({dtype.wire}\)"):
            decode(message, one(dtype))


@pytest.mark.parametrize("dtype", [DType.FP16, DType.BF16])
def test_half_precision_has_no_typed_contents(dtype: DType) -> None:
    with pytest.raises(InvalidRequest, match=f"input 'x' is {dtype.wire}, which travels in raw_input_contents only"):
        decode(asking(dtype.wire, [1]), one(dtype))


def test_bool_bytes_are_0_or_1() -> None:
    assert decode(asking("BOOL", [2], b"\x00\x01"), one(DType.BOOL))[0][0].data == b"\x00\x01"
    with pytest.raises(InvalidRequest, match="input 'x': BOOL elements must be 0 or 1"):
        decode(asking("BOOL", [2], b"\x00\x02"), one(DType.BOOL))


@pytest.mark.parametrize("rank", [0, 1, 64])
def test_any_rank_up_to_numpys_is_accepted_for_a_dynamic_rank(rank: int) -> None:
    inputs, _ = decode(asking("UINT8", [1] * rank, b"7"), one(DType.UINT8))
    assert inputs == (Tensor(DType.UINT8, (1,) * rank, b"7"),)


def test_an_empty_second_dimension_is_a_tensor_without_elements() -> None:
    inputs, _ = decode(asking("FP32", [1, 0], b""), one(DType.FP32))
    assert inputs == (Tensor(DType.FP32, (1, 0), b""),)


def test_sizes_beyond_all_memory_are_too_many_elements() -> None:
    with pytest.raises(InvalidRequest, match=r"input 'x' of shape .* would be 2\*\*63 or more elements; at most"):
        decode(asking("FP32", [2**62, 2**62, 16], b"1234"), one(DType.FP32))


# -- what is taken ----------------------------------------------------------------


def test_inputs_come_in_port_order_whatever_the_requests_order_and_by_any_alias() -> None:
    message = good()
    message.inputs[0].name = "image:0"
    message.inputs.reverse()
    message.raw_input_contents.reverse()
    assert decode(message)[0] == decode(good())[0]


def test_all_outputs_are_returned_unless_named_and_then_in_the_requested_order() -> None:
    assert decode(good())[1] == (0, 1)
    message = good()
    message.outputs.add(name="labels")
    message.outputs.add(name="scores:0")
    assert decode(message)[1] == (1, 0)


def test_the_batch_is_the_first_dimension_if_the_model_has_one() -> None:
    assert codec.rows("m", decode(good(5))[0], SIGNATURE) == 5
    assert codec.rows("m", decode(asking("UINT8", [5], b"12345"), one(DType.UINT8))[0], one(DType.UINT8)) == 1


def test_parameters_that_clients_always_send_are_accepted() -> None:
    message = good()
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    message.parameters["triton_anything"].string_param = "x"
    message.inputs[0].parameters["binary_data"].bool_param = True
    message.outputs.add(name="scores").parameters["binary_data"].bool_param = True
    message.parameters["max_tokens"].int64_param = 5
    message.inputs[1].parameters["content_type"].string_param = "np"
    decode(message)
    found = decode_parameters(message)
    assert (found.final_response, Counter(found.ignored)) == (
        True,
        {"triton_anything": 1, "binary_data": 2, "max_tokens": 1, "content_type": 1},
    )


def test_empty_contents_next_to_raw_ones_are_no_contents() -> None:
    message = good()
    for item in message.inputs:
        item.contents.SetInParent()
    assert decode(message) == decode(good())


def test_timeout_is_microseconds_and_0_is_none() -> None:
    message = good()
    message.parameters["timeout"].int64_param = 1500
    message.parameters["priority"].uint64_param = 3
    assert decode_parameters(message) == Parameters(timeout=1_500_000, priority=3)
    message.parameters["timeout"].int64_param = 0
    assert decode_parameters(message).timeout is None


# -- byte strings -----------------------------------------------------------------


def packed(*strings: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(s)) + s for s in strings)


@pytest.mark.parametrize(
    ("shape", "raw", "sentence"),
    [
        ([2], packed(b"a"), "input 'x' of shape [2] must have 2 elements, got 1"),
        ([1], packed(b"a", b"b"), "input 'x' has more than the 1 elements of its shape"),
        ([1, 0], packed(b"a"), "input 'x' has more than the 0 elements of its shape"),
        ([1], b"", "input 'x' of shape [1] must have 1 elements, got 0"),
        ([1], b"\x00\x00\x00", "input 'x': element 0 runs past the end of the data"),
        ([2], packed(b"a") + b"\x01\x00\x00\x00", "input 'x': element 1 runs past the end of the data"),
        ([1], b"\xff\xff\xff\xff", "input 'x': element 0 runs past the end of the data"),
        ([1], packed(b"a")[:-1], "input 'x': element 0 runs past the end of the data"),
        ([1], packed(b"a\0"), "input 'x': BYTES elements that end in a zero byte are not supported"),
        ([2**15], b"", f"input 'x' of shape [{2**15}] must have {2**15} elements, got 0"),
        (
            [2**15 + 1],
            b"",
            f"input 'x' of shape [{2**15 + 1}] would be {2**15 + 1} elements; at most {2**15} are allowed",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_byte_strings_that_do_not_add_up_are_refused(shape: list[int], raw: bytes, sentence: str) -> None:
    # An empty raw entry counts as given: it is one entry for one input.
    with pytest.raises(InvalidRequest) as refused:
        decode(asking("BYTES", shape, raw), one(DType.BYTES))
    assert str(refused.value) == f"model 'm': {sentence}"


@pytest.mark.parametrize("strings", [[], [b""], [b"", b""], [b"\0a"], [b"\xff\xfe", b"", b"long " * 9]])
def test_byte_strings_may_be_empty_and_hold_any_byte_but_a_last_zero(strings: list[bytes]) -> None:
    shape = [1, len(strings)]
    raw = asking("BYTES", shape, packed(*strings))
    in_fields = asking("BYTES", shape)
    in_fields.inputs[0].contents.bytes_contents.extend(strings)
    expected = (Tensor(DType.BYTES, (1, len(strings)), strings),)
    assert decode(raw, one(DType.BYTES))[0] == expected
    assert decode(in_fields, one(DType.BYTES))[0] == expected


def test_many_short_strings_with_a_long_one_are_refused_before_they_become_an_array() -> None:
    message = asking("BYTES", [30_001])
    message.inputs[0].contents.bytes_contents.extend([b""] * 30_000 + [b"x" * 3000])
    sentence = "30001 elements with a longest of 3000 bytes exceed 33554432 bytes as an array of equal width"
    with pytest.raises(InvalidRequest, match=sentence):
        decode(message, one(DType.BYTES))


# -- what a hostile message costs -------------------------------------------------

MANY = 1_000_000
HUGE: dict[str, Change] = {
    "dimensions": _set("inputs.0.shape", [1] * MANY),
    "inputs": lambda m: m.inputs.MergeFrom([m.inputs[0]] * MANY),
    "outputs": lambda m: m.outputs.extend([pb.ModelInferRequest.InferRequestedOutputTensor(name="scores")] * MANY),
    "raw contents": lambda m: m.raw_input_contents.extend([b""] * MANY),
    "typed contents": lambda m: m.inputs[0].contents.fp32_contents.extend([0.0] * MANY),
    "long names": _set("inputs.0.name", "\n" * MANY),
}


@pytest.mark.parametrize("change", HUGE.values(), ids=HUGE.keys())
@pytest.mark.parametrize("make", [good, typed], ids=["raw", "typed"])
def test_a_million_of_anything_is_refused_without_building_a_million(
    make: Callable[[], pb.ModelInferRequest], change: Change
) -> None:
    message = make()
    change(message)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest) as refused:
            decode(message)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A list of them would take 8 MB; a flattened copy of the name takes what the name does.
    assert peak < 7_000_000
    assert len(str(refused.value)) < 1100


# -- properties -------------------------------------------------------------------

SHAPES = st.lists(st.integers(1, 4), max_size=4)
NUMERIC = [d for d in DType if d is not DType.BYTES]


@given(st.sampled_from(NUMERIC), SHAPES, st.randoms(use_true_random=False))
def test_raw_numbers_come_back_byte_for_byte(dtype: DType, shape: list[int], random: Random) -> None:
    raw = random.randbytes(elements(shape) * dtype.itemsize)
    if dtype is DType.BOOL:
        raw = bytes(b & 1 for b in raw)
    signature = one(dtype, shape)
    inputs, _ = decode(asking(dtype.wire, shape, raw), signature)
    answer = encoded("m", "1", "id", signature.outputs, inputs)
    assert list(answer.raw_output_contents) == [raw]
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [("y", dtype.wire, shape)]
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "1", "id")


def _values(dtype: DType) -> st.SearchStrategy[object]:
    if dtype is DType.BOOL:
        return st.booleans()
    if dtype is DType.BYTES:
        return st.binary(max_size=20).filter(lambda s: not s.endswith(b"\0"))
    if dtype in (DType.FP32, DType.FP64):
        return st.floats(width=8 * dtype.itemsize)  # type: ignore[arg-type]
    bounds = np.iinfo(dtype.numpy.name)
    return st.integers(int(bounds.min), int(bounds.max))


@given(st.sampled_from(sorted(codec.CONTENTS, key=lambda d: d.wire)), SHAPES, st.data())
def test_typed_values_equal_numpys_conversion(dtype: DType, shape: list[int], data: st.DataObject) -> None:
    values = data.draw(st.lists(_values(dtype), min_size=elements(shape), max_size=elements(shape)))
    signature = one(dtype, shape)
    message = asking(dtype.wire, shape)
    getattr(message.inputs[0].contents, codec.CONTENTS[dtype]).extend(values)
    inputs, _ = decode(message, signature)
    expected = packed(*values) if dtype is DType.BYTES else np.array(values, dtype.numpy).tobytes()
    assert list(encoded("m", "1", "", signature.outputs, inputs).raw_output_contents) == [expected]


@given(st.lists(st.binary(max_size=20).filter(lambda s: not s.endswith(b"\0"))))
def test_byte_strings_come_back_byte_for_byte(strings: list[bytes]) -> None:
    assume(strings)
    signature = one(DType.BYTES)
    inputs, _ = decode(asking("BYTES", [len(strings)], packed(*strings)), signature)
    assert list(encoded("m", "1", "", signature.outputs, inputs).raw_output_contents) == [packed(*strings)]


def test_views_of_a_slots_memory_are_copied() -> None:
    memory = bytearray(b"1234")
    answer = encoded("m", "1", "", [SCORES], [Tensor(DType.UINT8, (4,), memoryview(memory))])
    memory[:] = b"9999"
    assert list(answer.raw_output_contents) == [b"1234"]


NAMES = st.sampled_from(["pixels", "image:0", "level", "scores", "labels", "", "?"]) | st.text(max_size=8)
PARAMETERS = st.dictionaries(
    st.sampled_from(["timeout", "priority", "triton_x", "shared_memory_region", "binary_data"]) | st.text(max_size=8),
    st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1))
    | st.builds(pb.InferParameter, string_param=st.text(max_size=8))
    | st.builds(pb.InferParameter, double_param=st.floats()),
    max_size=2,
)
CONTENTS = st.builds(
    pb.InferTensorContents,
    fp32_contents=st.lists(st.floats(width=32), max_size=4),
    int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=2),
    bytes_contents=st.lists(st.binary(max_size=4), max_size=1),
)
INPUTS = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=NAMES,
    datatype=st.sampled_from(sorted(BY_WIRE_NAME)) | st.text(max_size=5),
    shape=st.lists(st.integers(0, 3) | st.integers(-(2**63), 2**63 - 1), max_size=4),
    parameters=PARAMETERS,
    contents=st.none() | CONTENTS,
)
MESSAGES = st.builds(
    pb.ModelInferRequest,
    model_name=st.text(max_size=5),
    parameters=PARAMETERS,
    inputs=st.lists(INPUTS, max_size=3),
    outputs=st.lists(st.builds(pb.ModelInferRequest.InferRequestedOutputTensor, name=NAMES), max_size=3),
    raw_input_contents=st.lists(st.binary(max_size=16), max_size=3),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The bytes of a valid request with a few of them changed, left out or added."""
    raw = bytearray(draw(st.sampled_from([good(), good(8), typed()])).SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(raw)


@given(MESSAGES)
def test_what_a_client_wrote_never_breaks_the_line_that_refuses_it(message: pb.ModelInferRequest) -> None:
    message.model_name += "\n"
    message.inputs.add(name="a\r\nb\x1b[31m")
    with pytest.raises(InvalidRequest) as refused:
        decode(message)
    assert str(refused.value).isprintable()


@given(mutated() | st.binary() | MESSAGES.map(lambda m: m.SerializeToString()))
def test_every_request_is_either_refused_or_fits_the_signature(raw: bytes) -> None:
    try:
        inputs, outputs = decode(codec.parse(raw, pb.ModelInferRequest))
    except InvalidRequest:
        return
    assert len(set(outputs)) == len(outputs)
    assert set(outputs) <= {0, 1}
    for spec, tensor in zip(SIGNATURE.inputs, inputs, strict=True):
        assert tensor.dtype is spec.dtype
        assert spec.accepts(tensor.shape)
        assert len(tensor.data) == elements(tensor.shape) * spec.dtype.itemsize
    assert len({tensor.shape[0] for tensor in inputs}) == 1


# -- limits -------------------------------------------------------------------------


def declared(dtype: DType, shape: list[int], data: bytes = bytes(10)) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m")
    message.inputs.add(name="x", datatype=dtype.wire, shape=shape)
    message.raw_input_contents.append(data)
    return message


@pytest.mark.parametrize(
    ("dtype", "shape", "said"),
    [
        (DType.UINT8, [1 << 31], "input 'x' of shape [2147483648] would be 2147483648 elements; at most 67108864"),
        (DType.FP32, [1 << 29], "input 'x' of shape [536870912] would be 536870912 elements; at most 67108864"),
        (DType.FP64, [64 << 20], "input 'x' of shape [67108864] would be 536870912 bytes; at most 268435456"),
        (DType.BYTES, [5 << 20], "input 'x' of shape [5242880] would be 335544320 bytes; at most 268435456"),
        (DType.FP32, [2, 0, 1 << 61], "would be 4611686018427387904 elements; at most 67108864"),
        (DType.FP32, [2**63 - 1] * 64, "would be 2**63 or more elements; at most 67108864 are allowed"),
    ],
)
def test_a_shape_too_large_is_refused_by_the_name_of_its_input_before_anything_is_allocated(
    dtype: DType, shape: list[int], said: str
) -> None:
    message = declared(dtype, shape)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest) as refused:
            decode(message, one(dtype))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert said in str(refused.value)
    assert str(refused.value).startswith("model 'm': input 'x' of shape [")
    assert peak < 64 << 10


def test_the_limits_are_those_of_the_daemon_and_a_fixed_shape_is_the_models_own() -> None:
    message, tight = declared(DType.UINT8, [10]), codec.TensorLimits(elements=9)
    with pytest.raises(InvalidRequest, match="10 elements; at most 9"):
        codec.decode_inputs(message, one(DType.UINT8), limits=tight)
    assert codec.decode_inputs(message, one(DType.UINT8), limits=codec.TensorLimits(10, 10))
    with pytest.raises(InvalidRequest, match="10 bytes; at most 9"):
        codec.decode_inputs(message, one(DType.UINT8), limits=codec.TensorLimits(nbytes=9))
    assert codec.decode_inputs(message, one(DType.UINT8, [10]), limits=tight)


def test_more_inputs_than_the_model_has_cost_nothing_to_refuse() -> None:
    message = good()
    for _ in range(100_000):
        message.inputs.add(name="pixels", datatype="FP32", shape=[1, 2])
    with pytest.raises(InvalidRequest, match="100002 inputs come with 2 raw_input_contents"):
        decode(message)
    del message.raw_input_contents[:]
    message.inputs[0].contents.fp32_contents.extend([0.0, 0.0])
    message.inputs[1].contents.int_contents.append(0)
    with pytest.raises(InvalidRequest, match="input 'pixels' is given twice"):
        decode(message)


def test_long_ids_and_many_parameters_are_refused() -> None:
    message = good()
    message.id = "x" * MAX_REQUEST_ID
    decode(message)
    message.id += "x"
    with pytest.raises(InvalidRequest, match="id has 1025 characters; at most 1024"):
        decode(message)
    message = good()
    for place in range(MAX_PARAMETERS):
        message.parameters[f"triton_{place}"].bool_param = True
    decode(message)
    message.parameters["triton_more"].bool_param = True
    with pytest.raises(InvalidRequest, match="65 request parameters are given; at most 64"):
        decode(message)
