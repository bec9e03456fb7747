"""Split requests and joined responses equal protobuf's, byte for byte."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd._pb import open_inference_pb2 as pb
from inferd.rpc import codec, wire
from inferd.rpc.parameters import NO_PARAMETERS, Parameters
from inferd.rpc.request_templates import RequestSpec, RequestTemplate, TemplateCache
from inferd.tensors import Dim, DType, Signature, Tensor, TensorSpec
from tests.rpc.messages import encoded

texts = st.text(max_size=20)
names = st.text("abcxyz_:0", max_size=8)


@st.composite
def messages(draw: st.DrawFn) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=draw(texts), model_version=draw(names), id=draw(texts))
    for key in draw(st.lists(names, max_size=2)):
        message.parameters[key].int64_param = draw(st.integers(-(2**63), 2**63 - 1))
    for name in draw(st.lists(names, max_size=3)):
        message.inputs.add(name=name, datatype="FP32", shape=draw(st.lists(st.integers(0, 300), max_size=3)))
    for name in draw(st.lists(names, max_size=2)):
        message.outputs.add(name=name)
    message.raw_input_contents.extend(draw(st.lists(st.binary(max_size=300), max_size=3)))
    return message


def whole(split: wire.SplitRequest) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest.FromString(split.head)
    message.id = split.id
    message.raw_input_contents.extend(map(bytes, split.contents))
    return message


@given(messages())
def test_a_librarys_message_is_split_without_loss(message: pb.ModelInferRequest) -> None:
    split = wire.split_request(message.SerializeToString())
    assert split is not None
    assert whole(split) == message
    head = pb.ModelInferRequest.FromString(split.head)
    assert not head.id
    assert not head.raw_input_contents


@given(st.one_of(st.binary(max_size=200), messages().map(lambda m: m.SerializeToString())), st.data())
def test_split_bytes_equal_what_a_parser_reads(raw: bytes, data: st.DataObject) -> None:
    if raw and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + bytes([data.draw(st.integers(0, 255))]) + raw[at + data.draw(st.integers(0, 2)) :]
    split = wire.split_request(raw)
    if split is None:
        return
    try:
        expected = pb.ModelInferRequest.FromString(raw)
    except Exception:  # protobuf can't read the head, which it has to parse once
        with pytest.raises(Exception, match="parsing"):
            pb.ModelInferRequest.FromString(split.head)
        return
    assert whole(split) == expected


def test_contents_are_views_of_the_received_bytes() -> None:
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"first", b"", b"x" * 70_000])
    raw = message.SerializeToString()
    split = wire.split_request(raw)
    assert split is not None
    assert [bytes(c) for c in split.contents] == [b"first", b"", b"x" * 70_000]
    assert all(c.obj is raw for c in split.contents)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x0a",  # a tag and no length
        b"\x0a\x05ab",  # longer than the message
        b"\x0a\x80\x80\x80\x80\x80\x01",  # a length of six bytes
        b"\x1a\x01a\x0a\x01m",  # out of order
        b"\x1a\x01a\x1a\x01b",  # two ids
        b"\x1a\x01\xff",  # an id that is not text
        b"\x08\x01",  # a number in place of bytes
        b"\x42\x01a",  # an unknown field
        b"\x0a\x8a\x27" + bytes(5002),  # a head longer than any client's
    ],
)
def test_unusual_messages_are_left_to_the_parser(raw: bytes) -> None:
    assert wire.split_request(raw) is None


# -- answers ----------------------------------------------------------------------


def specs(dtypes: Sequence[DType]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(f"y{i}", dtype, (Dim(0, None), Dim(0, None))) for i, dtype in enumerate(dtypes))


fixed = st.sampled_from([t for t in DType if t is not DType.BYTES])
shapes = st.tuples(st.integers(0, 5), st.integers(0, 40))


@st.composite
def answers(draw: st.DrawFn) -> tuple[tuple[TensorSpec, ...], list[Tensor]]:
    described = specs(draw(st.lists(fixed, min_size=1, max_size=3)))
    tensors = []
    for spec in described:
        shape = draw(shapes)
        values = np.frombuffer(draw(st.randoms()).randbytes(shape[0] * shape[1] * spec.dtype.itemsize), np.uint8)
        array = values.reshape(*shape, spec.dtype.itemsize)
        # As the engine returns them: views of memory, with rows apart if the batch axis is not the first.
        data = array.data if draw(st.booleans()) else np.asfortranarray(array).data
        tensors.append(Tensor(spec.dtype, shape, data))
    return described, tensors


@given(answers(), texts, st.booleans())
def test_a_joined_response_equals_protobufs(
    answer: tuple[tuple[TensorSpec, ...], list[Tensor]], request_id: str, final: bool
) -> None:
    described, tensors = answer
    parameters = Parameters(final_response=final)
    template = RequestTemplate(
        pb.ModelInferRequest(),
        Signature((), described),
        inputs=[],
        request_spec=RequestSpec(tuple(range(len(described))), parameters, 1, None),
        answered_by=("m", "3"),
    )
    for outputs in (tensors, tensors):
        expected = encoded("m", "3", request_id, described, outputs)
        if final:
            expected.parameters["triton_final_response"].bool_param = True
        parts, nbytes = template.answer(request_id, outputs)
        assert wire.as_unary(parts, nbytes) == expected.SerializeToString()
        assert nbytes == expected.ByteSize()
        streamed = pb.ModelStreamInferResponse(infer_response=expected)
        assert wire.as_stream(parts, nbytes) == streamed.SerializeToString()
    other = [Tensor(t.dtype, (1, 2), bytes(2 * t.dtype.itemsize)) for t in tensors]
    parts, nbytes = template.answer(request_id, other)
    expected = encoded("m", "3", request_id, described, other)
    if final:
        expected.parameters["triton_final_response"].bool_param = True
    assert wire.as_unary(parts, nbytes) == expected.SerializeToString()


# -- templates ------------------------------------------------------------------------

SIGNATURE = Signature(
    (TensorSpec("left", DType.FP32, (Dim(2, 2),)), TensorSpec("right", DType.INT8, (Dim(1, 1),), frozenset({"r"}))),
    (TensorSpec("sum", DType.FP32, (Dim(2, 2),)),),
)


def asked(model: str = "m", request_id: str = "7") -> pb.ModelInferRequest:
    """In an order other than the ports', and by another name."""
    message = pb.ModelInferRequest(model_name=model, id=request_id)
    message.inputs.add(name="r", datatype="INT8", shape=[1])
    message.inputs.add(name="left", datatype="FP32", shape=[2])
    message.raw_input_contents.extend([b"\x05", bytes(8)])
    return message


def keep(
    templates: TemplateCache, message: pb.ModelInferRequest, signature: Signature = SIGNATURE
) -> wire.SplitRequest:
    split = wire.split_request(message.SerializeToString())
    assert split is not None
    inputs = codec.decode_inputs(message, signature)
    outputs = codec.decode_outputs(message, signature)
    templates.keep(split, message, signature, inputs, RequestSpec(outputs, NO_PARAMETERS, 1, None), ("m", "1"))
    return split


def test_a_templated_request_gives_the_same_tensors_as_decoding() -> None:
    templates = TemplateCache()
    keep(templates, asked())
    message = asked(request_id="8")
    message.raw_input_contents[0], message.raw_input_contents[1] = b"\x09", b"12345678"
    split = wire.split_request(message.SerializeToString())
    assert split is not None
    template = templates.get(split.head)
    assert template is not None
    given = template.tensors(split.contents)
    assert given is not None
    decoded = codec.decode_inputs(message, SIGNATURE)
    assert [(t.dtype, t.shape, bytes(t.data)) for t in given] == [(t.dtype, t.shape, t.data) for t in decoded]  # type: ignore[arg-type]
    assert template.request_spec == ((0,), NO_PARAMETERS, 1, None)


@pytest.mark.parametrize("contents", [[b"\x05"], [b"\x05", bytes(7)], [b"", bytes(8)], [b"\x05", bytes(8), b""], []])
def test_contents_of_other_lengths_are_left_to_the_decoder(contents: list[bytes]) -> None:
    templates = TemplateCache()
    split = keep(templates, asked())
    template = templates.get(split.head)
    assert template is not None
    assert template.tensors(list(map(memoryview, contents))) is None


def test_inputs_that_need_a_check_get_no_template() -> None:
    templates = TemplateCache()
    for dtype, raw in ((DType.BOOL, b"\1"), (DType.BYTES, b"\1\0\0\0a")):
        signature = Signature((TensorSpec("x", dtype, (Dim(1, 1),)),), ())
        message = pb.ModelInferRequest(model_name="m", raw_input_contents=[raw])
        message.inputs.add(name="x", datatype=dtype.wire, shape=[1])
        assert templates.get(keep(templates, message, signature).head) is None
    typed = asked()
    del typed.raw_input_contents[:]
    typed.inputs[0].contents.int_contents.append(5)
    typed.inputs[1].contents.fp32_contents.extend([0, 0])
    assert templates.get(keep(templates, typed).head) is None


def test_the_number_of_remembered_heads_is_bounded() -> None:
    templates = TemplateCache()
    first = keep(templates, asked("m0"))
    for n in range(1, 1000):
        last = keep(templates, asked(f"m{n}"))
    assert templates.get(first.head) is None
    assert templates.get(last.head) is not None
    assert len(templates._templates) <= 256
