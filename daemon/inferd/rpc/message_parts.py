"""Long requests taken apart without a parser: tensors stay in the bytes received, and what is left is short.

A parser makes an object of each field, name and number. In 64 MiB there can be 32 million of them, which take minutes
and gigabytes; and it copies tensors, which takes a millisecond for each megabyte. Meanwhile nothing else is served.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple, NoReturn

from inferd.errors import InvalidRequest

SHORT = 64 << 10
"""Bytes that may be parsed: a request without the contents of its tensors, or all of a short one."""

# Fields of a long request, with those of its inputs. Names, types and shapes need some dozens.
MAX_FIELDS = 4096

# Field numbers of ModelInferRequest and of its InferInputTensor, and the wire type of both.
_INPUTS, _RAW_CONTENTS, _CONTENTS, _DELIMITED = 5, 7, 5, 2
_MALFORMED = InvalidRequest("", "the message is not a ModelInferRequest")
_NO_CONTENTS: Mapping[int, memoryview] = MappingProxyType({})


class MessageParts(NamedTuple):
    """A request: ``head`` is a message without contents, ``contents`` its raw_input_contents, and ``typed`` the
    InferTensorContents of its inputs, by their places; views of the bytes received."""

    head: bytes
    contents: list[memoryview]
    typed: Mapping[int, memoryview] = _NO_CONTENTS


class Field(NamedTuple):
    """A field on the wire: its ``number``, wire ``type``, where it begins and ends, and where its value begins."""

    number: int
    type: int
    begins: int
    value: int
    ends: int


def take_apart(raw: bytes) -> MessageParts:
    """The parts of ``raw``. Raises InvalidRequest if it is no message, or if more than :data:`SHORT` bytes or
    :data:`MAX_FIELDS` fields are left without the contents."""
    view = memoryview(raw)
    head: list[bytes] = []
    contents: list[memoryview] = []
    typed: dict[int, memoryview] = {}
    size = count = inputs = 0
    for field in fields(view):
        count += 1
        kept = view[field.begins : field.ends]
        if field.type == _DELIMITED:
            value = view[field.value : field.ends]
            if field.number == _RAW_CONTENTS:
                contents.append(value)
                kept = view[:0]
            elif field.number == _INPUTS:
                described, own, more = _without_contents(value)
                count += more
                kept = memoryview(b"\x2a" + encoded_length(len(described)) + described)
                if own is not None:
                    typed[inputs] = own
                inputs += 1
        size += len(kept)
        if size > SHORT or count > MAX_FIELDS:
            _too_long(count)
        head.append(bytes(kept))
    return MessageParts(b"".join(head), contents, typed)


def fields(view: memoryview) -> Iterator[Field]:
    """The fields of a message, one after the other; raises InvalidRequest where it is none."""
    at, end = 0, len(view)
    while at < end:
        tag, value = varint(view, at)
        kind = tag & 7
        if kind == 0:
            _, ends = varint(view, value)
        elif kind == _DELIMITED:
            size, value = varint(view, value)
            ends = value + size
        elif kind in (1, 5):
            ends = value + (8 if kind == 1 else 4)
        else:
            raise _MALFORMED.bare()
        if ends > end or not tag >> 3:
            raise _MALFORMED.bare()
        yield Field(tag >> 3, kind, at, value, ends)
        at = ends


def varint(view: memoryview, at: int) -> tuple[int, int]:
    """The number at ``at`` and where it ends; raises InvalidRequest if there is none."""
    number = shift = 0
    for place in range(at, min(at + 10, len(view))):
        byte = view[place]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place + 1
        shift += 7
    raise _MALFORMED.bare()


def encoded_length(number: int) -> bytes:
    """``number`` as a message has it before that many bytes."""
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _without_contents(view: memoryview) -> tuple[bytes, memoryview | None, int]:
    """An input without its contents, its contents, and how many fields it has."""
    kept: list[bytes] = []
    own: memoryview | None = None
    size = count = 0
    for field in fields(view):
        count += 1
        if field.number == _CONTENTS and field.type == _DELIMITED:
            if own is not None:
                raise InvalidRequest("", "an input of the request has contents twice")
            own = view[field.value : field.ends]
            continue
        size += field.ends - field.begins
        if size > SHORT or count > MAX_FIELDS:
            _too_long(count)
        kept.append(bytes(view[field.begins : field.ends]))
    return b"".join(kept), own, count


def _too_long(count: int) -> NoReturn:
    said = f"{MAX_FIELDS} fields" if count > MAX_FIELDS else f"{SHORT} bytes"
    raise InvalidRequest("", f"the request has more than {said} without the contents of its inputs")
