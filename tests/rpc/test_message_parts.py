"""A long request taken apart says what its parser would have said, without making an object of all it holds."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from inferd._pb import open_inference_pb2 as pb
from inferd.errors import InvalidRequest
from inferd.rpc import codec, message_parts, typed_contents
from inferd.rpc.message_parts import MAX_FIELDS, SHORT, take_apart
from inferd.tensors import Dim, DType, Signature, Tensor, TensorSpec

NOT_ONE = "the message is not a ModelInferRequest"
OPEN = (Dim(0, None),)
TYPES = [dtype for dtype in DType if dtype not in (DType.FP16, DType.BF16)]


def spec(name: str, dtype: DType) -> TensorSpec:
    return TensorSpec(name, dtype, OPEN)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[DType, list[object]]:
    """A type, and elements of it."""
    dtype = draw(st.sampled_from(TYPES))
    if dtype is DType.BYTES:
        one: st.SearchStrategy[object] = st.binary(max_size=200).filter(lambda s: not s.endswith(b"\0"))
    elif dtype is DType.BOOL:
        one = st.booleans()
    elif dtype.numpy.kind == "f":
        one = st.floats(width=32 if dtype is DType.FP32 else 64, allow_nan=False)
    else:
        bounds = np.iinfo(dtype.numpy.name)
        one = st.integers(int(bounds.min), int(bounds.max))
    return dtype, draw(st.lists(one, max_size=20))


def message_of(given_tensors: Sequence[tuple[DType, list[object]]], request_id: str = "") -> pb.ModelInferRequest:
    """A request with typed contents, inputs named by their places."""
    message = pb.ModelInferRequest(model_name="m", id=request_id)
    for place, (dtype, values) in enumerate(given_tensors):
        item = message.inputs.add(name=str(place), datatype=dtype.wire, shape=[len(values)])
        getattr(item.contents, codec.CONTENTS[dtype]).extend(values)
    return message


def plain(inputs: Sequence[Tensor]) -> list[tuple[DType, tuple[int, ...], object]]:
    """Tensors as what they hold, wherever that is."""
    return [(t.dtype, t.shape, list(t.data) if t.dtype is DType.BYTES else bytes(t.data)) for t in inputs]  # type: ignore[arg-type]


def decoded(raw: bytes, signature: Signature) -> list[tuple[DType, tuple[int, ...], object]]:
    """The inputs in ``raw``, taken apart."""
    parts = take_apart(raw)
    message = pb.ModelInferRequest.FromString(parts.head)
    return plain(codec.decode_inputs(message, signature, parts=parts))


@given(st.lists(tensors(), min_size=1, max_size=4), st.text(max_size=20))
def test_typed_contents_are_the_tensors_that_a_parser_finds(
    given_tensors: list[tuple[DType, list[object]]], request_id: str
) -> None:
    message = message_of(given_tensors, request_id)
    signature = Signature(tuple(spec(str(n), dtype) for n, (dtype, _) in enumerate(given_tensors)), ())
    raw = message.SerializeToString()
    assert decoded(raw, signature) == plain(codec.decode_inputs(message, signature))
    head = pb.ModelInferRequest.FromString(take_apart(raw).head)
    for item in message.inputs:
        item.ClearField("contents")
    assert head == message


@given(st.lists(st.binary(max_size=300), max_size=6), st.text(max_size=20))
def test_raw_contents_are_views_of_what_was_received(contents: list[bytes], request_id: str) -> None:
    message = pb.ModelInferRequest(model_name="m", id=request_id, raw_input_contents=contents)
    message.parameters["priority"].int64_param = 7
    raw = message.SerializeToString()
    parts = take_apart(raw)
    assert [bytes(view) for view in parts.contents] == contents
    assert all(view.obj is raw for view in parts.contents)
    message.ClearField("raw_input_contents")
    assert pb.ModelInferRequest.FromString(parts.head) == message
    assert not parts.typed


@given(st.binary(max_size=60))
def test_any_bytes_are_parts_or_an_invalid_request(raw: bytes) -> None:
    try:
        pb.ModelInferRequest.FromString(raw)
    except DecodeError:
        with suppress(InvalidRequest):
            take_apart(raw)
        return
    try:
        parts = take_apart(raw)
    except InvalidRequest:
        # Groups, which no version of the protocol has, and contents that come twice.
        return
    assert len(parts.head) + sum(map(len, parts.contents)) + sum(map(len, parts.typed.values())) <= len(raw) + 10


@pytest.mark.parametrize("field", [b"\x2a\0", b"\x32\0", b"\x3a\0", b"\x22\0", b"\x08\x01", b"\xf8\x7f\0"])
def test_more_fields_than_a_request_needs_are_refused_before_they_are_looked_at(field: bytes) -> None:
    assert take_apart(field * MAX_FIELDS)
    with pytest.raises(InvalidRequest, match=f"more than {MAX_FIELDS} fields without the contents"):
        take_apart(field * (MAX_FIELDS + 1))
    inside = field * (MAX_FIELDS + 1)
    with pytest.raises(InvalidRequest, match=f"more than {MAX_FIELDS} fields without the contents|contents twice"):
        take_apart(b"\x2a" + message_parts.encoded_length(len(inside)) + inside)


@pytest.mark.parametrize("tag", [b"\x0a", b"\x1a", b"\x22", b"\x32", b"\xfa\x7f", b"\x2a"])
def test_long_names_and_lists_are_refused(tag: bytes) -> None:
    value = b"\x0a" + message_parts.encoded_length(SHORT) + b"x" * SHORT
    with pytest.raises(InvalidRequest, match=f"more than {SHORT} bytes without the contents"):
        take_apart(tag + message_parts.encoded_length(len(value)) + value)


@pytest.mark.parametrize(
    "raw",
    [b"\x0a", b"\x0a\x05ab", b"\x0b", b"\x0c", b"\x0f", b"\x00\x01", b"\x09ab", b"\x0dab", b"\x08" + b"\xff" * 11],
    ids=repr,
)
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    for whole in (raw, b"\x2a" + bytes([len(raw)]) + raw):
        with pytest.raises(InvalidRequest, match=NOT_ONE):
            take_apart(whole)


VARINTS = [
    (DType.INT8, "int_contents", "input 'x': values must be -128..127 (INT8)", [128]),
    (DType.UINT16, "uint_contents", "input 'x': values must be 0..65535 (UINT16)", [65536]),
    (DType.INT64, "int_contents", "input 'x' is INT64: use int64_contents, not int_contents", [1]),
    (DType.BYTES, "int_contents", "input 'x' is BYTES: use bytes_contents, not int_contents", [1]),
]


@pytest.mark.parametrize(("dtype", "field", "sentence", "values"), VARINTS, ids=[v[0].wire for v in VARINTS])
def test_mistakes_in_typed_contents_are_told_as_for_short_requests(
    dtype: DType, field: str, sentence: str, values: list[int]
) -> None:
    message = pb.ModelInferRequest(model_name="m")
    item = message.inputs.add(name="x", datatype=dtype.wire, shape=[len(values)])
    getattr(item.contents, field).extend(values)
    signature = Signature((spec("x", dtype),), ())
    for decode in (
        lambda: codec.decode_inputs(message, signature),
        lambda: decoded(message.SerializeToString(), signature),
    ):
        with pytest.raises(InvalidRequest) as refused:
            decode()
        assert str(refused.value) == f"model 'm': {sentence}"


def contents(field: int, *packed: bytes) -> memoryview:
    """The bytes of contents that have these values of a field."""
    return memoryview(
        b"".join(bytes([field << 3 | 2]) + message_parts.encoded_length(len(one)) + one for one in packed)
    )


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30), st.integers(0, 30))
def test_numbers_in_several_pieces_are_one_list(values: list[int], at: int) -> None:
    pieces = [pb.InferTensorContents(int64_contents=part).SerializeToString() for part in (values[:at], values[at:])]
    found = typed_contents.numbers("m", "x", DType.INT64, "int64_contents", memoryview(b"".join(pieces)))
    assert found.tolist() == values


def test_numbers_that_are_not_packed_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="input 'x': its int64_contents are not packed; send raw_input_contents"):
        typed_contents.numbers("m", "x", DType.INT64, "int64_contents", memoryview(b"\x18\x01\x18\x02"))


@pytest.mark.parametrize(
    ("wanted", "field", "data"),
    [
        ("int64_contents", 3, b"\x80"),
        ("int64_contents", 3, b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"),
        ("fp32_contents", 6, b"abc"),
        ("fp64_contents", 7, b"abcd"),
    ],
)
def test_numbers_that_end_too_early_or_too_late_are_refused(wanted: str, field: int, data: bytes) -> None:
    with pytest.raises(InvalidRequest, match=NOT_ONE):
        typed_contents.numbers("m", "x", DType.INT64, wanted, contents(field, data))


def test_more_numbers_of_variable_length_than_take_long_are_refused() -> None:
    many = contents(3, bytes(typed_contents.MAX_VARINTS + 1))
    with pytest.raises(InvalidRequest, match=r"int64_contents of 1048577 bytes; at most 1048576 are allowed: send raw"):
        typed_contents.numbers("m", "x", DType.INT64, "int64_contents", many)
    # Of a fixed length they are copied, however many.
    floats = typed_contents.numbers("m", "x", DType.FP32, "fp32_contents", contents(6, bytes(8 << 20)))
    assert len(floats) == 2 << 20


@pytest.mark.parametrize("raw", [b"\x42", b"\x42\x05ab", b"\x42\x80", b"\x40\x01"], ids=repr)
def test_strings_that_are_none_are_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match=NOT_ONE):
        typed_contents.strings("m", "x", memoryview(raw), 5)


def test_more_strings_than_the_shape_has_are_not_made() -> None:
    with pytest.raises(InvalidRequest, match="input 'x' has more than the 2 elements of its shape"):
        typed_contents.strings("m", "x", contents(8, b"a", b"b", b"c"), 2)


def test_what_is_made_of_strings_counts() -> None:
    made = [Tensor(DType.BYTES, (2,), [b"ab", b""]), Tensor(DType.FP32, (1,), b"abcd")]
    assert codec.made_bytes(made) == 2 * 64 + 2
