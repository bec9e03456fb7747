"""Inference messages as bytes: requests split without parsing them, responses joined from prepared parts.

A client sends the same message again and again, except for its tensors and its id: what was learnt about the rest
holds as long as its bytes are the same. And protobuf copies a tensor at each step, into its message and out of it; here
it stays where gRPC has put it until it is copied to the device, and a response's is copied once.
docs/decisions/0016 has the figures.
"""

from collections.abc import Iterable
from typing import NamedTuple

from inferd._pb import open_inference_pb2 as pb
from inferd.rpc.message_parts import encoded_length

Part = bytes | memoryview

# Tags of the length-delimited fields 1 to 7 of ModelInferRequest; it has no others.
_FIRST_TAG, _ID, _CONTENTS = 0x0A, 0x1A, 0x3A
_TAGS = frozenset((number << 3) | 2 for number in range(1, 8))
# raw_output_contents of ModelInferResponse, infer_response of ModelStreamInferResponse.
_OUTPUT_CONTENTS, _IN_STREAM = b"\x32", b"\x12"

_MAX_HEAD, _MAX_FIELDS = 4096, 256
"""Longer heads, and more fields, are unusual, and get no template."""


class SplitRequest(NamedTuple):
    """A ModelInferRequest: ``contents`` are its raw_input_contents, views of the bytes received; ``head`` is
    everything else but the id, and is a message itself."""

    head: bytes
    id: str
    contents: list[memoryview]


def split_request(raw: bytes) -> SplitRequest | None:
    """The parts of ``raw``; None unless its fields are those of a ModelInferRequest, in order as libraries write them.

    The head is not checked: a parser decides whether it is a message, once for each head.
    """
    end, at, last = len(raw), 0, _FIRST_TAG
    id_from = id_at = id_to = 0
    count = 0
    contents: list[memoryview] = []
    view: memoryview | None = None
    head_to = end
    try:
        while at < end:
            tag = raw[at]
            if tag < last or tag not in _TAGS:
                return None
            last = tag
            count += 1
            if count > _MAX_FIELDS:
                return None
            length, start = raw[at + 1], at + 2
            if length >= 0x80:
                length, start = _varint(raw, at + 1)
            stop = start + length
            if stop > end:
                return None
            if tag == _CONTENTS:
                if view is None:
                    view, head_to = memoryview(raw), at
                contents.append(view[start:stop])
            elif tag == _ID:
                if id_to:
                    return None
                id_from, id_at, id_to = at, start, stop
            at = stop
        if head_to > _MAX_HEAD:
            return None
        if not id_to:
            return SplitRequest(raw[:head_to], "", contents)
        if id_to - id_at > _MAX_HEAD:
            return None
        return SplitRequest(raw[:id_from] + raw[id_to:head_to], raw[id_at:id_to].decode(), contents)
    except (IndexError, ValueError):
        return None


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """The number at ``at``, of at most five bytes, and where it ends. Raises IndexError or ValueError."""
    number = shift = 0
    while True:
        byte = raw[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 28:
            raise ValueError("number too long")


def contents_head(nbytes: int) -> bytes:
    """The bytes before the ``nbytes`` of an output in a response."""
    return _OUTPUT_CONTENTS + encoded_length(nbytes)


def id_field(request_id: str) -> bytes:
    """The response's id field; nothing for an empty id."""
    if not request_id:
        return b""
    encoded = request_id.encode()
    return b"\x1a" + encoded_length(len(encoded)) + encoded


def as_unary(parts: Iterable[Part], _: int) -> bytes:
    """A response of ``parts`` as the message of a unary call."""
    return b"".join(parts)


def as_stream(parts: Iterable[Part], nbytes: int) -> bytes:
    """A response of ``parts``, ``nbytes`` in total, as the message of a stream."""
    return b"".join((_IN_STREAM, encoded_length(nbytes), *parts))


FINAL = pb.ModelInferResponse(
    parameters={"triton_final_response": pb.InferParameter(bool_param=True)}
).SerializeToString()
"""The part that tells a client that asked for it that no other response follows."""
