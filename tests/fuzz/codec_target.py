"""One run of the codec on bytes that a client may send, and the properties that must hold."""

import re
from collections.abc import Iterator

from inferd._pb import open_inference_pb2 as pb
from inferd._pb import tuner_pb2
from inferd.errors import InferdError, InvalidRequest
from inferd.rpc import codec, message_parts, wire
from inferd.rpc.parameters import check_sequence
from inferd.rpc.parameters import decode as decode_parameters
from inferd.rpc.request_templates import RequestSpec, TemplateCache
from inferd.tensors import Dim, DType, Shape, Signature, StateLink, Tensor, TensorSpec, elements
from tests.rpc.messages import encoded

ROWS = Dim(1, 8)
ANY = Dim(0, None)

SIGNATURES = (
    # Fixed shapes; a batch; any shape at all; state that the server carries; state of the model's own.
    Signature((TensorSpec("x", DType.FP32, (Dim(4, 4),)),), (TensorSpec("y", DType.FP32, (Dim(4, 4),)),)),
    Signature(
        (
            TensorSpec("pixels", DType.UINT8, (ROWS, Dim(2, 2)), frozenset({"image:0"})),
            TensorSpec("level", DType.INT8, (ROWS, Dim(1, 1))),
        ),
        (TensorSpec("scores", DType.FP32, (ROWS, Dim(3, 3))), TensorSpec("labels", DType.BYTES, (ROWS,))),
        max_batch=8,
    ),
    *(Signature((TensorSpec("x", t, None),), (TensorSpec("y", t, None),)) for t in DType),
    *(
        Signature((TensorSpec("x", t, (ANY, ANY)),), (TensorSpec("y", t, (ANY, ANY)),))
        for t in (DType.BOOL, DType.BYTES)
    ),
    Signature(
        (TensorSpec("x", DType.FP32, (ROWS, Dim(1, 1))), TensorSpec("state", DType.FP32, (ROWS, Dim(1, 1)))),
        (TensorSpec("y", DType.FP32, (ROWS, Dim(1, 1))), TensorSpec("next", DType.FP32, (ROWS, Dim(1, 1)))),
        max_batch=8,
        states=(StateLink(1, 1, Tensor(DType.FP32, (1, 1), bytes(4))),),
    ),
    Signature(
        (TensorSpec("x", DType.INT64, (Dim(2, 2),)),), (TensorSpec("y", DType.INT64, (Dim(2, 2),)),), stateful=True
    ),
)

MESSAGES = tuple(
    m
    for file in (pb, tuner_pb2)
    for m in vars(file).values()
    if isinstance(m, type) and hasattr(m, "FromString") and m.DESCRIPTOR.name.endswith("Request")
)

LIMITS = codec.TensorLimits(elements=1 << 16, nbytes=1 << 18)
_MOST_SAID = 1200


class Wrong(Exception):
    """The codec did what it must not."""


def exercise(raw: bytes, which: int) -> str:
    """Take ``raw`` for a request to one of :data:`SIGNATURES`. Returns the kind of result, without particulars.

    Raises Wrong, or whatever the codec raised that is not one of the documented errors.
    """
    signature = SIGNATURES[which % len(SIGNATURES)]
    try:
        message = codec.parse(raw, pb.ModelInferRequest)
    except InvalidRequest as error:
        return _told(error)
    try:
        parameters = decode_parameters(message)
        sequence = check_sequence(message.model_name, parameters, signature)
        inside = sequence is not None
        inputs = codec.decode_inputs(message, signature, in_sequence=inside, limits=LIMITS)
        rows = codec.rows(message.model_name, inputs, signature, in_sequence=inside)
        outputs = codec.decode_outputs(message, signature, in_sequence=inside)
    except InferdError as error:
        if not isinstance(error, InvalidRequest):
            raise Wrong(f"{type(error).__name__} is no answer to a request's own mistake") from error
        return _told(error)
    _check(signature, inputs, rows, outputs)
    _take_apart(raw, signature, inputs, in_sequence=inside)
    _remember(raw, message, signature, inputs, RequestSpec(outputs, parameters, rows, None))
    answer = encoded("m", "1", message.id, signature.inputs, inputs)
    if len(answer.raw_output_contents) != len(inputs):
        raise Wrong("not every tensor was encoded")
    return f"taken by {which % len(SIGNATURES)}"


def _take_apart(raw: bytes, signature: Signature, inputs: tuple[Tensor, ...], *, in_sequence: bool) -> None:
    """Once more as a long request, which is not parsed: it has to come to the same, or be refused."""
    try:
        parts = message_parts.take_apart(raw)
        message = codec.parse(parts.head, pb.ModelInferRequest)
        again = codec.decode_inputs(message, signature, in_sequence=in_sequence, limits=LIMITS, parts=parts)
    except InvalidRequest:
        return
    for one, other in zip(inputs, again, strict=True):
        same = list(one.data) == list(other.data) if one.dtype is DType.BYTES else bytes(one.data) == bytes(other.data)  # type: ignore[arg-type]
        if not same or one.shape != other.shape:
            raise Wrong("another tensor was found in the message's parts")


def _remember(
    raw: bytes,
    message: pb.ModelInferRequest,
    signature: Signature,
    inputs: tuple[Tensor, ...],
    request_spec: RequestSpec,
) -> None:
    """Once more as a request like one before, which is not parsed: it has to come to the same."""
    split = wire.split_request(raw)
    if split is None:
        return
    templates = TemplateCache()
    templates.keep(split, message, signature, inputs, request_spec, ("m", "1"))
    template = templates.get(split.head)
    if template is None:
        return
    given = template.tensors(split.contents)
    if split.id != message.id or given is None or len(given) != len(inputs):
        raise Wrong("a request is not like itself")
    for one, other in zip(given, inputs, strict=True):
        if (one.dtype, one.shape, bytes(one.data)) != (other.dtype, other.shape, other.data):  # type: ignore[arg-type]
            raise Wrong("a request that is not parsed means something else")


def parse_any(raw: bytes, which: int) -> None:
    """Take ``raw`` for any of the messages that clients send."""
    try:
        codec.parse(raw, MESSAGES[which % len(MESSAGES)])
    except InvalidRequest as error:
        _told(error)


def _check(signature: Signature, inputs: tuple[Tensor, ...], rows: int, outputs: tuple[int, ...]) -> None:
    if len(inputs) != len(signature.inputs) or len(set(outputs)) != len(outputs) or rows < 1:
        raise Wrong("ports or rows do not add up")
    for spec, tensor in zip(signature.inputs, inputs, strict=True):
        if not spec.accepts(tensor.shape) or tensor.dtype is not spec.dtype:
            raise Wrong(f"'{spec.name}' was taken as {tensor.dtype} {tensor.shape}")
        size = len(tensor.data)
        if size != elements(tensor.shape) * (spec.dtype.itemsize or 1):
            raise Wrong(f"'{spec.name}' of {tensor.shape} has {size} bytes or strings")
        if elements(tensor.shape) > LIMITS.elements:
            raise Wrong(f"'{spec.name}' of {tensor.shape} is beyond the limit")


def _told(error: InvalidRequest) -> str:
    said = str(error)
    if not said.isprintable():
        raise Wrong(f"what it says is more than one line: {said!r}")
    if len(said) > _MOST_SAID:
        raise Wrong(f"what it says has {len(said)} characters")
    # From the first quotation mark to the last: a name may hold some of its own.
    return re.sub(r"'.*'|\[.*\]|[0-9]+", "*", said)


def seeds() -> Iterator[bytes]:
    """Requests that each signature takes or nearly takes, to begin with."""
    for signature in SIGNATURES:
        for typed in (False, True):
            for sequence in (False, True):
                yield _request(signature, typed=typed, sequence=sequence).SerializeToString()


def _request(signature: Signature, *, typed: bool, sequence: bool) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m", model_version="1", id="7")
    for spec in signature.shown_inputs if sequence else signature.inputs:
        shape: Shape = spec.smallest() if spec.dims is not None else (2,)
        item = message.inputs.add(name=spec.name, datatype=spec.dtype.wire, shape=shape)
        count = elements(shape)
        if typed and (field := codec.CONTENTS.get(spec.dtype)):
            values = [b"a"] * count if spec.dtype is DType.BYTES else [1] * count
            getattr(item.contents, field).extend(values)
        elif spec.dtype is DType.BYTES:
            message.raw_input_contents.append(b"\1\0\0\0a" * count)
        else:
            message.raw_input_contents.append(bytes(count * spec.dtype.itemsize))
    for spec in signature.outputs:
        message.outputs.add(name=spec.name)
    message.parameters["timeout"].int64_param = 1000
    message.parameters["priority"].uint64_param = 1
    if sequence:
        message.parameters["sequence_id"].string_param = "s"
        message.parameters["sequence_start"].bool_param = True
    return message
