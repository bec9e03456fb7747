"""Large InferTensorContents, from their bytes to tensors, as protobuf would have parsed them."""

from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from inferd.errors import InvalidRequest, listed
from inferd.rpc.message_parts import MAX_FIELDS, fields, varint
from inferd.tensors import DType

MAX_VARINTS = 1 << 20
"""Bytes of contents whose numbers are of variable length: taking them apart needs a hundred times what copying does."""

# Names of the fields of InferTensorContents by their numbers.
_NAMES = {
    1: "bool_contents",
    2: "int_contents",
    3: "int64_contents",
    4: "uint_contents",
    5: "uint64_contents",
    6: "fp32_contents",
    7: "fp64_contents",
    8: "bytes_contents",
}
# Numbers of a fixed length are as in a tensor already.
_FIXED = {"fp32_contents": 4, "fp64_contents": 8}
_VALUES: dict[str, type[np.generic]] = {
    "bool_contents": np.bool_,
    "int_contents": np.int32,
    "int64_contents": np.int64,
    "uint_contents": np.uint32,
    "uint64_contents": np.uint64,
}
_DELIMITED = 2
_STRING_TAG = 8 << 3 | _DELIMITED


def strings(model: str, name: str, contents: memoryview, most: int) -> list[bytes]:
    """The bytes_contents of input ``name``. Raises InvalidRequest if there are more than ``most``, or others."""
    found: list[bytes] = []
    # One loop, as each element costs.
    raw, at, size = bytes(contents), 0, len(contents)
    try:
        while at < size:
            if len(found) == most:
                raise InvalidRequest(model, f"input '{name}' has more than the {most} elements of its shape")
            if raw[at] != _STRING_TAG:
                other = next(fields(contents[at:]))
                _check(model, name, DType.BYTES, other.number, "bytes_contents")
                _malformed()
            length, at = raw[at + 1], at + 2
            if length >= 0x80:
                length, at = varint(contents, at - 1)
            found.append(raw[at : at + length])
            at += length
    except IndexError:
        _malformed()
    if at > size:
        _malformed()
    return found


def numbers(model: str, name: str, dtype: DType, wanted: str, contents: memoryview) -> npt.NDArray[np.generic]:
    """The numbers of input ``name`` of ``dtype``, in the field ``wanted`` of its contents, and of that field's type.

    Raises InvalidRequest for others, or if they are not packed, or too many.
    """
    packed: list[memoryview] = []
    for field in fields(contents):
        _check(model, name, dtype, field.number, wanted)
        if field.type != _DELIMITED or len(packed) == MAX_FIELDS:
            raise InvalidRequest(model, f"input '{name}': its {wanted} are not packed; send raw_input_contents instead")
        packed.append(contents[field.value : field.ends])
    data = packed[0] if len(packed) == 1 else b"".join(packed)
    if (size := _FIXED.get(wanted)) is not None:
        if len(data) % size:
            _malformed()
        return np.frombuffer(data, np.float32 if size == 4 else np.float64)
    if len(data) > MAX_VARINTS:
        raise InvalidRequest(
            model,
            f"input '{name}': {wanted} of {len(data)} bytes; at most {MAX_VARINTS} are allowed: "
            "send raw_input_contents instead",
        )
    values = _varints(data)
    kind = _VALUES[wanted]
    # Longer numbers are cut, as protobuf does.
    return values != 0 if kind is np.bool_ else values.astype(kind)


def _check(model: str, name: str, dtype: DType, number: int, wanted: str) -> None:
    said = _NAMES.get(number)
    if said != wanted:
        found: Sequence[str] = [said] if said is not None else [f"field {number}"]
        raise InvalidRequest(model, f"input '{name}' is {dtype.wire}: use {wanted}, not {listed(found)}")


def _varints(data: "memoryview | bytes") -> npt.NDArray[np.uint64]:
    octets = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(octets < 0x80)
    if len(ends) == len(octets):
        return octets.astype(np.uint64)
    if not len(ends) or ends[-1] != len(octets) - 1:
        _malformed()
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    longest = int(lengths.max())
    if longest > 10:
        _malformed()
    values = np.zeros(len(ends), np.uint64)
    for place in range(longest):
        there = np.flatnonzero(lengths > place)
        values[there] |= (octets[starts[there] + place] & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * place)
    return values


def _malformed() -> NoReturn:
    raise InvalidRequest("", "the message is not a ModelInferRequest")
