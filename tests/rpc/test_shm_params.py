"""Inputs and outputs in shared memory, in requests and in responses."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd._pb import open_inference_pb2 as pb
from inferd.errors import InferdError, InvalidRequest, UnknownRegion
from inferd.requests import Request
from inferd.rpc import codec, shm_params
from inferd.shared_memory.regions import Span, check_span
from inferd.tensors import Dim, DType, Placed, Signature, Tensor, TensorSpec
from tests.replies import Answer

FIXED = TensorSpec("fixed", DType.FP32, (Dim(2, 2), Dim(3, 3)), frozenset({"fixed:0"}))
FLAGS = TensorSpec("flags", DType.BOOL, (Dim(0, None),))
WORDS = TensorSpec("words", DType.BYTES, (Dim(0, None),))
SCORES = TensorSpec("scores", DType.FP32, (Dim(2, 2),))
LABELS = TensorSpec("labels", DType.BYTES, (Dim(2, 2),))
MANY = TensorSpec("many", DType.INT64, (Dim(0, None),))
SIGNATURE = Signature((FIXED, FLAGS, WORDS), (SCORES, LABELS, MANY))


class Region:
    """Memory that exists."""

    def __init__(self, nbytes: int) -> None:
        self.data = bytearray(nbytes)

    def read(self, at: int, target: memoryview) -> None:
        target[:] = self.data[at : at + len(target)]

    def write(self, at: int, data: bytes | memoryview) -> None:
        self.data[at : at + memoryview(data).nbytes] = data

    def view(self, at: int, nbytes: int) -> memoryview | None:  # noqa: ARG002
        return None


class Client:
    """One region, r, of 200 bytes."""

    def __init__(self) -> None:
        self.region = Region(200)
        self.bindings = shm_params.ShmBindings(self._place)

    def _place(self, span: Span) -> Placed:
        if span.region != "r":
            raise UnknownRegion(span.region)
        check_span("region 'r'", span.offset, span.nbytes, len(self.region.data))
        return Placed(*span, self.region)

    def inputs(self, message: pb.ModelInferRequest) -> tuple[Tensor, ...]:
        return codec.decode_inputs(message, SIGNATURE, bindings=self.bindings)

    def outputs(self, message: pb.ModelInferRequest) -> tuple[int, ...]:
        return codec.decode_outputs(message, SIGNATURE, bindings=self.bindings)

    def noted(self, *outputs: int) -> Request:
        return Request("m", 1, (), outputs, Answer(), id="7", into=self.bindings.into)


def at(parameters: Any, offset: int | None, nbytes: int, region: str = "r") -> None:
    parameters[shm_params.REGION].string_param = region
    parameters[shm_params.NBYTES].int64_param = nbytes
    if offset is not None:
        parameters[shm_params.OFFSET].int64_param = offset


def asked(fixed: int | None = 8, flags: int | None = None, words: int | None = None) -> pb.ModelInferRequest:
    """A request whose inputs are at these offsets, or in the message if None."""
    message = pb.ModelInferRequest(model_name="m")
    raw = {"fixed": bytes(range(24)), "flags": b"\0\1\0", "words": b"\3\0\0\0abc\0\0\0\0"}
    for spec, shape, offset in ((FIXED, [2, 3], fixed), (FLAGS, [3], flags), (WORDS, [2], words)):
        item = message.inputs.add(name=spec.name, datatype=spec.dtype.wire, shape=shape)
        if offset is None:
            message.raw_input_contents.append(raw[spec.name])
        else:
            at(item.parameters, offset, len(raw[spec.name]))
    return message


def wanted(**outputs: tuple[int | None, int]) -> pb.ModelInferRequest:
    """A request for outputs, by name, at an offset and with a size in bytes."""
    message = pb.ModelInferRequest(model_name="m")
    for name, (offset, nbytes) in outputs.items():
        at(message.outputs.add(name=name).parameters, offset, nbytes)
    return message


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InferdError) as refused:
        call()
    return str(refused.value)


# -- inputs -----------------------------------------------------------------------


@pytest.mark.parametrize("fixed", [None, 0, 8])
@pytest.mark.parametrize("flags", [None, 100])
@pytest.mark.parametrize("words", [None, 150])
def test_each_input_is_in_the_message_or_in_shared_memory(
    fixed: int | None, flags: int | None, words: int | None
) -> None:
    client = Client()
    client.region.data[100:103] = b"\1\1\0"
    client.region.data[150:161] = b"\2\0\0\0xy\1\0\0\0z"

    first, second, third = client.inputs(asked(fixed, flags, words))

    assert (first.dtype, first.shape) == (DType.FP32, (2, 3))
    if fixed is None:
        assert first.data == bytes(range(24))
    else:
        assert first.data == Placed("r", fixed, 24, client.region)
    assert second.data == (b"\0\1\0" if flags is None else b"\1\1\0")
    assert third.data == ([b"abc", b""] if words is None else [b"xy", b"z"])
    assert client.bindings.shared == (fixed is not None or flags is not None or words is not None)
    assert client.bindings.taken_out == (0 if flags is None else 3) + (0 if words is None else 11)


def test_a_single_input_in_shared_memory_needs_no_raw_contents() -> None:
    client = Client()
    message = asked(8, 100, 150)
    client.region.data[150:161] = b"\2\0\0\0xy\1\0\0\0z"
    assert not message.raw_input_contents
    assert len(client.inputs(message)) == 3


MISTAKES: list[tuple[Callable[[pb.ModelInferRequest], object], str]] = [
    (
        lambda m: m.raw_input_contents.append(b""),
        "2 inputs come with 3 raw_input_contents; expected one each",
    ),
    (
        lambda m: m.inputs[0].contents.fp32_contents.append(1),
        "input 'fixed' has contents and is in shared memory; expected one of them",
    ),
    (
        lambda m: at(m.inputs[0].parameters, 0, 23),
        "input 'fixed' of shape [2, 3] FP32 must be 24 bytes, got 23 as shared_memory_byte_size",
    ),
    (
        lambda m: at(m.inputs[0].parameters, 0, 2**63 - 1),
        "region 'r': 9223372036854775807 bytes from offset 0 on reach past its 200 bytes",
    ),
    (
        lambda m: at(m.inputs[0].parameters, 2**63 - 1, 24),
        "region 'r': 24 bytes from offset 9223372036854775807 on reach past its 200 bytes",
    ),
    (
        lambda m: setattr(m.inputs[0].parameters[shm_params.OFFSET], "uint64_param", 2**64 - 24),
        "region 'r': 24 bytes from offset 18446744073709551592 on reach past its 200 bytes",
    ),
    (
        lambda m: at(m.inputs[0].parameters, -1, 24),
        "input 'fixed': parameter 'shared_memory_offset' must be an integer of 0 or more (int64_param or uint64_param)",
    ),
    (
        lambda m: at(m.inputs[0].parameters, 0, -24),
        "input 'fixed': parameter 'shared_memory_byte_size' must be an integer of 0 or more "
        "(int64_param or uint64_param)",
    ),
    (
        lambda m: setattr(m.inputs[0].parameters[shm_params.NBYTES], "string_param", "24"),
        "input 'fixed': parameter 'shared_memory_byte_size' must be an integer of 0 or more "
        "(int64_param or uint64_param)",
    ),
    (
        lambda m: setattr(m.inputs[0].parameters[shm_params.REGION], "int64_param", 1),
        "input 'fixed': parameter 'shared_memory_region' must be a string (string_param)",
    ),
    (
        lambda m: m.inputs[0].parameters.pop(shm_params.NBYTES),
        "input 'fixed': shared_memory_region and shared_memory_byte_size go together",
    ),
    (lambda m: at(m.inputs[1].parameters, 4, 3), "1 inputs come with 2 raw_input_contents; expected one each"),
]


@pytest.mark.parametrize(("mistake", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_mistakes_are_named(mistake: Callable[[pb.ModelInferRequest], object], said: str) -> None:
    client, message = Client(), asked()
    mistake(message)
    assert refusal(lambda: client.inputs(message)).removeprefix("model 'm': ") == said


def test_an_unregistered_region_is_not_found() -> None:
    message = asked()
    at(message.inputs[0].parameters, 0, 24, "x\n" * 1000)
    with pytest.raises(UnknownRegion) as unknown:
        Client().inputs(message)
    assert str(unknown.value).isprintable()
    assert len(str(unknown.value)) < 200


def test_content_in_a_region_is_checked_too() -> None:
    client = Client()
    client.region.data[100] = 2
    assert "BOOL elements must be 0 or 1" in refusal(lambda: client.inputs(asked(flags=100)))
    client.region.data[150:154] = b"\xff\xff\xff\xff"
    assert "element 0 runs past the end" in refusal(lambda: client.inputs(asked(words=150)))


def test_the_bytes_copied_out_are_bounded() -> None:
    client, message = Client(), asked(words=0)
    at(message.inputs[2].parameters, 0, 200)
    limits = codec.TensorLimits(nbytes=199)
    assert "would be 200 bytes; at most 199 are allowed" in refusal(
        lambda: codec.decode_inputs(message, SIGNATURE, limits=limits, bindings=client.bindings)
    )


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_no_numbers_reach_out_of_the_region(offset: int, nbytes: int) -> None:
    client, message = Client(), asked()
    message.inputs[0].parameters[shm_params.OFFSET].uint64_param = offset
    message.inputs[0].parameters[shm_params.NBYTES].uint64_param = nbytes
    try:
        tensor, *_ = client.inputs(message)
    except InvalidRequest:
        return
    assert isinstance(tensor.data, Placed)
    assert tensor.data.nbytes == 24
    assert offset + 24 <= 200


# -- outputs ----------------------------------------------------------------------

OUTPUTS = {
    0: Tensor(DType.FP32, (2,), memoryview(np.array([1.5, 2.5], np.float32)).cast("B")),
    1: Tensor(DType.BYTES, (2,), [b"ab", b""]),
    2: Tensor(DType.INT64, (3,), memoryview(np.array([[1, 9], [2, 9], [3, 9]], np.int64)[:, 0])),
}


def answered(client: Client, message: pb.ModelInferRequest) -> pb.ModelInferResponse:
    indexes = client.outputs(message)
    specs = [SIGNATURE.outputs[i] for i in indexes]
    request = client.noted(*indexes)
    return shm_params.answer("m", "1", request, specs, [OUTPUTS[i] for i in indexes], codec.raw_bytes)


def test_outputs_go_to_their_region_and_the_response_says_so() -> None:
    client = Client()
    message = wanted(labels=(100, 50), scores=(None, 8), many=(16, 24))

    response = answered(client, message)

    assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [
        ("labels", "BYTES", [2]),
        ("scores", "FP32", [2]),
        ("many", "INT64", [3]),
    ]
    assert list(response.raw_output_contents) == [b"", b"", b""]
    assert [o.parameters[shm_params.REGION].string_param for o in response.outputs] == ["r"] * 3
    assert [o.parameters[shm_params.NBYTES].int64_param for o in response.outputs] == [10, 8, 24]
    offsets = [
        o.parameters[shm_params.OFFSET].int64_param for o in response.outputs if shm_params.OFFSET in o.parameters
    ]
    assert offsets == [100, 16]
    assert client.region.data[:8] == np.array([1.5, 2.5], np.float32).tobytes()
    assert client.region.data[16:40] == np.array([1, 2, 3], np.int64).tobytes()
    assert client.region.data[100:110] == b"\2\0\0\0ab\0\0\0\0"
    assert not any(client.region.data[110:])


def test_other_outputs_are_in_the_message_at_their_places() -> None:
    client = Client()
    message = wanted(scores=(0, 8))
    message.outputs.add(name="labels")
    response = answered(client, message)
    assert list(response.raw_output_contents) == [b"", b"\2\0\0\0ab\0\0\0\0"]
    assert not response.outputs[1].parameters


def test_an_output_that_was_computed_in_place_is_not_written_again() -> None:
    client = Client()
    client.region.data[:8] = b"computed"
    message = wanted(scores=(0, 20))
    (index,) = client.outputs(message)
    request = client.noted(index)
    placed = dict(request.into)[index]
    response = shm_params.answer("m", "1", request, [SCORES], [Tensor(DType.FP32, (2,), placed)], codec.raw_bytes)
    assert client.region.data[:8] == b"computed"
    assert response.outputs[0].parameters[shm_params.NBYTES].int64_param == 8


def test_an_output_of_fixed_size_must_fit_before_the_run() -> None:
    client = Client()
    said = refusal(lambda: client.outputs(wanted(scores=(0, 7))))
    assert said == "model 'm': output 'scores' is 8 bytes; its shared_memory_byte_size is 7"


@pytest.mark.parametrize(("name", "needs"), [("labels", 10), ("many", 24)])
def test_an_output_of_open_size_must_fit_once_it_is_known(name: str, needs: int) -> None:
    client = Client()
    said = refusal(lambda: answered(client, wanted(**{name: (0, needs - 1)})))
    assert said == f"model 'm': output '{name}' is {needs} bytes; its shared_memory_byte_size is {needs - 1}"
    assert not any(client.region.data)


def test_an_output_reaches_out_of_no_region() -> None:
    said = refusal(lambda: Client().outputs(wanted(scores=(193, 8))))
    assert said == "region 'r': 8 bytes from offset 193 on reach past its 200 bytes"
