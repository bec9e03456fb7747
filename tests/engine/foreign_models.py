"""Files of other frameworks, each ``y = relu(x)`` over f32 [1,4], written byte by byte.

The frameworks themselves weigh gigabytes; their formats are protobuf (TensorFlow's
GraphDef, PaddlePaddle's ProgramDesc) and FlatBuffers (TensorFlow Lite's Model), and a
model of one operation needs few fields of them.
"""

from collections.abc import Sequence

import flatbuffers


def field(number: int, value: int | bytes) -> bytes:
    """A protobuf field: a varint, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    number %= 1 << 64
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def onnx(weights: str) -> bytes:
    """``y = x + w`` over f32 [2] instead, with ``w`` in the file ``weights``."""
    float32, external = 1, 1

    def value(name: bytes) -> bytes:
        tensor = field(1, float32) + field(2, field(1, field(1, 2)))
        return field(1, name) + field(2, field(1, tensor))

    node = field(1, b"x") + field(1, b"w") + field(2, b"y") + field(4, b"Add")
    location = field(13, field(1, b"location") + field(2, weights.encode()))
    tensor = field(1, 2) + field(2, float32) + field(8, b"w") + location + field(14, external)
    graph = field(1, node) + field(2, b"g") + field(5, tensor) + field(11, value(b"x")) + field(12, value(b"y"))
    return field(1, 8) + field(7, graph) + field(8, field(1, b"") + field(2, 13))


def tensorflow() -> bytes:
    """A frozen graph; TensorFlow names its tensors ``x:0`` and ``y:0``."""

    def node(name: bytes, op: bytes, inputs: Sequence[bytes] = (), **attributes: bytes) -> bytes:
        body = field(1, name) + field(2, op) + b"".join(field(3, i) for i in inputs)
        return field(1, body + b"".join(field(5, field(1, k.encode()) + field(2, v)) for k, v in attributes.items()))

    float32 = field(6, 1)
    shape = field(7, b"".join(field(2, field(1, n)) for n in (1, 4)))
    return node(b"x", b"Placeholder", dtype=float32, shape=shape) + node(b"y", b"Relu", [b"x"], T=float32)


def paddle() -> bytes:
    """A program of one block: feed, relu, fetch."""
    float32, dense, feed, fetch = 5, 7, 9, 10

    def variable(name: bytes, kind: int) -> bytes:
        described = field(1, kind)
        if kind == dense:
            described += field(3, field(1, field(1, float32) + field(2, 1) + field(2, 4)))
        return field(3, field(1, name) + field(2, described))

    def op(kind: bytes, x: bytes, out: bytes, *, column: bool = True) -> bytes:
        body = field(1, field(1, b"X") + field(2, x)) + field(2, field(1, b"Out") + field(2, out)) + field(3, kind)
        return field(4, body + (field(4, field(1, b"col") + field(2, 0) + field(3, 0)) if column else b""))

    variables = ((b"x", dense), (b"y", dense), (b"feed", feed), (b"fetch", fetch))
    block = field(1, 0) + field(2, -1) + b"".join(variable(*v) for v in variables)
    block += op(b"feed", b"feed", b"x") + op(b"relu", b"x", b"y", column=False) + op(b"fetch", b"y", b"fetch")
    return field(1, block)


def tensorflow_lite() -> bytes:
    """A model of one subgraph; a table is its fields by place, as the schema numbers them."""
    builder = flatbuffers.Builder(512)

    def table(offsets: dict[int, int], numbers: dict[int, int] | None = None) -> int:
        builder.StartObject(8)
        for place, offset in offsets.items():
            builder.PrependUOffsetTRelativeSlot(place, offset, 0)
        for place, number in (numbers or {}).items():
            builder.PrependInt32Slot(place, number, 0)
        return int(builder.EndObject())

    def numbers(*values: int) -> int:
        builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            builder.PrependInt32(value)
        return int(builder.EndVector())

    def tables(*offsets: int) -> int:
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    def tensor(name: str) -> int:
        named, shape = builder.CreateString(name), numbers(1, 4)
        return table({0: shape, 3: named})

    relu, schema_version = 19, 3
    tensors = tables(tensor("x"), tensor("y"))
    graph_in, graph_out, op_in, op_out = numbers(0), numbers(1), numbers(0), numbers(1)
    operators = tables(table({1: op_in, 2: op_out}))
    graph = table({0: tensors, 1: graph_in, 2: graph_out, 3: operators})
    builder.StartObject(4)
    builder.PrependInt8Slot(0, relu, 0)
    builder.PrependInt32Slot(2, 1, 0)
    builder.PrependInt32Slot(3, relu, 0)
    codes = tables(int(builder.EndObject()))
    graphs, buffers = tables(graph), tables(table({}))
    builder.Finish(table({1: codes, 2: graphs, 4: buffers}, {0: schema_version}), file_identifier=b"TFL3")
    return bytes(builder.Output())
