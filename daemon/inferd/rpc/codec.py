"""Converts between protocol messages and tensors: parse, validate, encode. Strict where that protects a slot.

OpenVINO reports every mistake as one kind of error, and often late, so names, types,
shapes and byte counts are all checked here, before anything waits or runs.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from inferd._pb import open_inference_pb2 as pb
from inferd.errors import InvalidRequest, listed, one_line
from inferd.rpc import shm_params, typed_contents, wire
from inferd.rpc.message_parts import MessageParts
from inferd.tensors import BY_WIRE_NAME, Buffer, DType, Placed, Shape, Signature, Tensor, TensorSpec, elements

# Fields of InferTensorContents by element type; FP16 and BF16 have none.
CONTENTS = {
    DType.BOOL: "bool_contents",
    DType.INT8: "int_contents",
    DType.INT16: "int_contents",
    DType.INT32: "int_contents",
    DType.INT64: "int64_contents",
    DType.UINT8: "uint_contents",
    DType.UINT16: "uint_contents",
    DType.UINT32: "uint_contents",
    DType.UINT64: "uint64_contents",
    DType.FP32: "fp32_contents",
    DType.FP64: "fp64_contents",
    DType.BYTES: "bytes_contents",
}

# OpenVINO takes strings as one array as wide as the longest: many short strings next to one long one would need
# gigabytes. It may have so many bytes, or twice those of the strings.
MAX_STRING_ARRAY_BYTES = 32 << 20

# numpy's maximum. A list of millions is refused before anything is made of it (CVE-2026-24146).
MAX_RANK = 64

# The size that one element of a BYTES tensor counts in addition to its content: each is an object here.
_STRING_COST = 64

M = TypeVar("M", bound=Message)

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class TensorLimits:
    """What a client may declare for one input whose shape the model leaves open. A dimension of 0 counts as 1, and
    an element of BYTES as 64 bytes. ``strings`` are the elements of a BYTES input, whatever its shape."""

    elements: int = 64 << 20
    nbytes: int = 256 << 20
    strings: int = 32 << 10


DEFAULT_LIMITS = TensorLimits()


def parse(raw: bytes, kind: type[M]) -> M:
    """The message of ``kind`` in ``raw``; raises InvalidRequest if it is not one."""
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise InvalidRequest("", f"the message is not a {kind.DESCRIPTOR.name}") from None


# -- inputs -----------------------------------------------------------------------


def decode_inputs(
    message: pb.ModelInferRequest,
    signature: Signature,
    *,
    in_sequence: bool = False,
    limits: TensorLimits = DEFAULT_LIMITS,
    bindings: shm_params.ShmBindings | None = None,
    parts: MessageParts | None = None,
) -> tuple[Tensor, ...]:
    """The inputs in port order, all validated; raises InvalidRequest naming the first mistake.

    ``parts`` have the contents if the message was taken apart.
    ``in_sequence`` the model's state inputs must be left out: their initial values stand in. ``bindings`` handles
    inputs in shared memory, which are all refused without it; it raises further errors.
    """
    model = message.model_name
    raw: Sequence[Buffer] = message.raw_input_contents if parts is None else parts.contents
    typed = parts.typed if parts is not None else {}
    given: list[Tensor | None] = [None] * len(signature.inputs)
    carried = {link.input for link in signature.states} if in_sequence else ()
    sent = len(message.inputs)
    if bindings is not None and sent <= len(signature.inputs):
        sent = len(message.inputs) - shm_params.count_in_shm(message)
    if raw and len(raw) != sent:
        raise InvalidRequest(model, f"{sent} inputs come with {len(raw)} raw_input_contents; expected one each")
    skipped = 0
    for place, item in enumerate(message.inputs):
        index = _port(model, "input", item.name, signature.inputs)
        spec = signature.inputs[index]
        if index in carried:
            raise InvalidRequest(
                model, f"input '{spec.name}' is state that the server carries in a sequence; leave it out"
            )
        if given[index] is not None:
            raise InvalidRequest(model, f"input '{spec.name}' is given twice")
        if item.datatype != spec.dtype.wire:
            _wrong_datatype(model, spec, item.datatype)
        if len(item.shape) > MAX_RANK:
            raise InvalidRequest(
                model, f"input '{spec.name}' has {len(item.shape)} dimensions; at most {MAX_RANK} are allowed"
            )
        shape = tuple(item.shape)
        if shape != spec.static_shape:
            if not spec.accepts(shape):
                _wrong_shape(model, spec, shape)
            _check_size(model, spec, shape, limits)
        if spec.dtype is DType.BYTES and elements(shape) > limits.strings:
            _too_large(model, spec, shape, elements(shape), "elements", limits.strings)
        if item.parameters:
            if bindings is None:
                shm_params.refuse(model, f"input '{spec.name}'", item.parameters)
            elif (placed := bindings.input(model, spec, shape, item, limits.nbytes)) is not None:
                if isinstance(placed, bytes):
                    given[index] = _from_raw(model, spec, shape, placed)
                else:
                    given[index] = Tensor(spec.dtype, shape, placed)
                skipped += 1
                continue
        packed = typed.get(place)
        if raw:
            if packed or item.contents.ListFields():
                raise InvalidRequest(
                    model, f"input '{spec.name}' has contents and raw_input_contents; expected one of them"
                )
            given[index] = _from_raw(model, spec, shape, raw[place - skipped])
        elif packed is not None:
            given[index] = _from_packed(model, spec, shape, packed)
        else:
            given[index] = _from_contents(model, spec, shape, item.contents)
    for link in signature.states if in_sequence else ():
        given[link.input] = link.initial
    return tuple(_complete(model, signature, given))


def rows(model: str, inputs: Sequence[Tensor], signature: Signature, *, in_sequence: bool = False) -> int:
    """How many rows the request carries, 1 if the model has no batch. Raises InvalidRequest unless all
    inputs agree; in a sequence it must be one."""
    if not signature.max_batch or not inputs:
        return 1
    counts = [t.shape[s.batch_axis] for s, t in zip(signature.inputs, inputs, strict=True)]
    if len(set(counts)) > 1 and not in_sequence:
        sizes = listed(f"'{s.name}' {n}" for s, n in zip(signature.inputs, counts, strict=True))
        raise InvalidRequest(model, f"inputs disagree on the batch size: {sizes}")
    if in_sequence and max(counts) > 1:
        raise InvalidRequest(model, f"a request of a sequence must have a batch of 1, got {max(counts)}")
    return counts[0]


def _complete(model: str, signature: Signature, given: Sequence[Tensor | None]) -> list[Tensor]:
    missing = [place for place, tensor in enumerate(given) if tensor is None]
    if missing:
        carried = missing[0] in {link.input for link in signature.states}
        why = " and the request has no sequence_id, with which the server would carry it" if carried else ""
        names = listed(spec.name for spec in signature.inputs)
        raise InvalidRequest(model, f"input '{signature.inputs[missing[0]].name}' is missing{why}; inputs: {names}")
    return [t for t in given if t is not None]


def _port(model: str, what: str, name: str, specs: Sequence[TensorSpec]) -> int:
    for index, spec in enumerate(specs):
        if name == spec.name or name in spec.aliases:
            return index
    raise InvalidRequest(model, f"unknown {what} '{one_line(name, 80)}'; {what}s: {listed(s.name for s in specs)}")


def _wrong_datatype(model: str, spec: TensorSpec, datatype: str) -> NoReturn:
    said = f"'{one_line(datatype, 40)}'" + ("" if datatype in BY_WIRE_NAME else ", which is not a type of the protocol")
    raise InvalidRequest(model, f"input '{spec.name}' must be {spec.dtype.wire}, got {said}")


def _wrong_shape(model: str, spec: TensorSpec, shape: Shape) -> NoReturn:
    said = f"[{one_line(','.join(map(str, shape)), 120)}]"
    raise InvalidRequest(model, f"input '{spec.name}' must have shape {spec.describe()}, got {said}")


def _check_size(model: str, spec: TensorSpec, shape: Shape, limits: TensorLimits) -> None:
    count = elements([n for n in shape if n])
    if count > limits.elements:
        _too_large(model, spec, shape, count, "elements", limits.elements)
    nbytes = count * (spec.dtype.itemsize or _STRING_COST)
    if nbytes > limits.nbytes:
        _too_large(model, spec, shape, nbytes, "bytes", limits.nbytes)


def _too_large(model: str, spec: TensorSpec, shape: Shape, count: int, unit: str, most: int) -> NoReturn:
    said = f"[{one_line(','.join(map(str, shape)), 120)}]"
    # 64 dimensions can multiply to a number of a thousand digits.
    number = str(count) if count < 2**63 else "2**63 or more"
    raise InvalidRequest(
        model, f"input '{spec.name}' of shape {said} would be {number} {unit}; at most {most} are allowed"
    )


def _from_raw(model: str, spec: TensorSpec, shape: Shape, raw: Buffer) -> Tensor:
    if spec.dtype is DType.BYTES:
        return _strings(model, spec, shape, _split_strings(model, spec, bytes(raw), elements(shape)))
    expected = elements(shape) * spec.dtype.itemsize
    if len(raw) != expected:
        raise InvalidRequest(
            model,
            f"input '{spec.name}' of shape {list(shape)} {spec.dtype.wire} must be {expected} bytes, got {len(raw)}",
        )
    if spec.dtype is DType.BOOL and raw and int(np.frombuffer(raw, np.uint8).max()) > 1:
        raise InvalidRequest(model, f"input '{spec.name}': BOOL elements must be 0 or 1")
    _check_numbers(model, spec, shape, raw)
    return Tensor(spec.dtype, shape, raw)


def _check_numbers(model: str, spec: TensorSpec, shape: Shape, raw: Buffer) -> None:
    """Raises InvalidRequest naming the first number that the model's devices can't represent."""
    checked = spec.checked
    if checked is None or checked.holds(raw):
        return
    at, number = checked.first_outside(raw)
    where = ",".join(str(int(n)) for n in np.unravel_index(at, shape))
    raise InvalidRequest(model, f"input '{spec.name}': element [{where}] is {number}, outside {checked}: {checked.why}")


def _split_strings(model: str, spec: TensorSpec, raw: bytes, count: int) -> list[bytes]:
    strings: list[bytes] = []
    at, size, unpack = 0, len(raw), _LENGTH.unpack_from
    while at < size:
        if len(strings) == count:
            raise InvalidRequest(model, f"input '{spec.name}' has more than the {count} elements of its shape")
        start = at + 4
        at = start + (unpack(raw, at)[0] if start <= size else size)
        if at > size:
            raise InvalidRequest(model, f"input '{spec.name}': element {len(strings)} runs past the end of the data")
        strings.append(raw[start:at])
    return strings


def _strings(model: str, spec: TensorSpec, shape: Shape, strings: list[bytes]) -> Tensor:
    if len(strings) != elements(shape):
        _wrong_count(model, spec, shape, len(strings))
    longest = max(map(len, strings), default=0)
    if longest * len(strings) > (most := max(MAX_STRING_ARRAY_BYTES, 2 * sum(map(len, strings)))):
        raise InvalidRequest(
            model,
            f"input '{spec.name}': {len(strings)} elements with a longest of {longest} bytes exceed {most} bytes as an "
            "array of equal width",
        )
    if any(s[-1:] == b"\0" for s in strings):
        raise InvalidRequest(model, f"input '{spec.name}': BYTES elements that end in a zero byte are not supported")
    return Tensor(spec.dtype, shape, strings)


def _wrong_count(model: str, spec: TensorSpec, shape: Shape, count: int) -> NoReturn:
    raise InvalidRequest(
        model, f"input '{spec.name}' of shape {list(shape)} must have {elements(shape)} elements, got {count}"
    )


def _from_contents(model: str, spec: TensorSpec, shape: Shape, contents: pb.InferTensorContents) -> Tensor:
    wanted = CONTENTS.get(spec.dtype)
    if wanted is None and not elements(shape) and not contents.ListFields():
        return Tensor(spec.dtype, shape, b"")
    if wanted is None:
        raise InvalidRequest(
            model, f"input '{spec.name}' is {spec.dtype.wire}, which travels in raw_input_contents only"
        )
    filled = [field.name for field, _ in contents.ListFields()]
    if filled not in ([], [wanted]):
        raise InvalidRequest(model, f"input '{spec.name}' is {spec.dtype.wire}: use {wanted}, not {listed(filled)}")
    values = getattr(contents, wanted)
    if spec.dtype is DType.BYTES:
        return _strings(model, spec, shape, list(values))
    if len(values) != elements(shape):
        _wrong_count(model, spec, shape, len(values))
    array = np.array(values, dtype=np.int64 if wanted in ("int_contents", "uint_contents") else spec.dtype.numpy)
    return _from_array(model, spec, shape, array, wanted)


def _from_packed(model: str, spec: TensorSpec, shape: Shape, contents: memoryview) -> Tensor:
    """Likewise from the bytes of contents that are not parsed, because they are many."""
    wanted = CONTENTS.get(spec.dtype)
    if wanted is None:
        raise InvalidRequest(
            model, f"input '{spec.name}' is {spec.dtype.wire}, which travels in raw_input_contents only"
        )
    if spec.dtype is DType.BYTES:
        return _strings(model, spec, shape, typed_contents.strings(model, spec.name, contents, elements(shape)))
    array = typed_contents.numbers(model, spec.name, spec.dtype, wanted, contents)
    if len(array) != elements(shape):
        _wrong_count(model, spec, shape, len(array))
    return _from_array(model, spec, shape, array, wanted)


def _from_array(model: str, spec: TensorSpec, shape: Shape, array: "np.ndarray[Any, Any]", wanted: str) -> Tensor:
    if wanted in ("int_contents", "uint_contents") and array.size:
        bounds = np.iinfo(spec.dtype.numpy.name)
        if array.min() < bounds.min or array.max() > bounds.max:
            raise InvalidRequest(
                model, f"input '{spec.name}': values must be {bounds.min}..{bounds.max} ({spec.dtype.wire})"
            )
    packed = array.astype(spec.dtype.numpy, copy=False).reshape(-1).view(np.uint8).data
    _check_numbers(model, spec, shape, packed)
    return Tensor(spec.dtype, shape, packed)


def made_bytes(inputs: Sequence[Tensor]) -> int:
    """Bytes that were made of a message for BYTES ``inputs``, in addition to its own: an object for each element."""
    strings = [tensor.data for tensor in inputs if tensor.dtype is DType.BYTES and isinstance(tensor.data, list)]
    return sum(len(data) * _STRING_COST + sum(map(len, data)) for data in strings)


# -- outputs ----------------------------------------------------------------------


def decode_outputs(
    message: pb.ModelInferRequest,
    signature: Signature,
    *,
    in_sequence: bool = False,
    bindings: shm_params.ShmBindings | None = None,
) -> tuple[int, ...]:
    """Port indexes of the outputs requested; raises InvalidRequest.

    If none are named, all; but ``in_sequence`` without the state, which the server keeps.
    """
    if not message.outputs:
        kept = {link.output for link in signature.states} if in_sequence else ()
        return tuple(i for i in range(len(signature.outputs)) if i not in kept)
    wanted: list[int] = []
    # Checked before any name is looked up: a list of millions must cost nothing (CVE-2026-24146).
    if len(message.outputs) > len(signature.outputs):
        raise InvalidRequest(
            message.model_name, f"{len(message.outputs)} outputs are requested; the model has {len(signature.outputs)}"
        )
    for item in message.outputs:
        index = _port(message.model_name, "output", item.name, signature.outputs)
        if index in wanted:
            raise InvalidRequest(message.model_name, f"output '{signature.outputs[index].name}' is requested twice")
        if item.parameters:
            if bindings is None:
                shm_params.refuse(message.model_name, f"output '{item.name}'", item.parameters)
            else:
                bindings.output(message.model_name, index, signature.outputs[index], item)
        wanted.append(index)
    return tuple(wanted)


def answer_bytes(signature: Signature, outputs: Sequence[int], rows: int) -> int | None:
    """Bytes of the tensors at these port indexes in a response of ``rows`` rows; None if the signature leaves that
    open."""
    total = 0
    for spec in (signature.outputs[index] for index in outputs):
        if spec.dims is None or spec.dtype is DType.BYTES:
            return None
        shape = spec.wire_shape
        if signature.max_batch:
            shape[spec.batch_axis] = rows
        if -1 in shape:
            return None
        total += elements(shape) * spec.dtype.itemsize
    return total


def encode(
    model: str,
    version: str,
    request_id: str,
    specs: Sequence[TensorSpec],
    outputs: Sequence[Tensor],
    *,
    final_response: bool = False,
) -> list[wire.Part]:
    """The parts of the response, views of the slot's memory among them."""
    response = pb.ModelInferResponse(model_name=model, model_version=version, id=request_id)
    contents: list[wire.Part] = []
    for spec, tensor in zip(specs, outputs, strict=True):
        response.outputs.add(name=spec.name, datatype=spec.dtype.wire, shape=tensor.shape)
        data = tensor.data
        if not isinstance(data, memoryview) or not data.c_contiguous:
            data = raw_bytes(tensor)
        contents += wire.contents_head(memoryview(data).nbytes), data
    if final_response:
        response.parameters["triton_final_response"].bool_param = True
    return [response.SerializeToString(), *contents]


def raw_bytes(tensor: Tensor) -> bytes:
    """A tensor's elements in wire format, in memory of their own."""
    data = tensor.data
    if isinstance(data, memoryview):
        return data.tobytes()
    if isinstance(data, bytes):
        return data
    if isinstance(data, Placed):
        return data.copied()
    return b"".join(part for s in data for part in (_LENGTH.pack(len(s)), s))
