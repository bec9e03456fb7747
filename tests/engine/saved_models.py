"""TensorFlow's SavedModel and frozen graph, written by hand: TensorFlow itself is large, and this is two formats."""

import struct
from pathlib import Path
from typing import Any

import numpy as np

_FLOAT = 1
# LevelDB's table format, in which TensorFlow keeps the index of its variables.
_MAGIC = 0xDB4775248B80FB57


def save(folder: Path, weights: "np.ndarray[Any, Any]") -> Path:
    """``folder`` as a SavedModel: y = x @ w, of any number of rows, with ``w`` among its variables."""
    rows, columns = weights.shape
    graph = _node("x", "Placeholder", dtype=_type(), shape=_attribute(7, _shape(-1, rows)))
    graph += _node("w", "VarHandleOp", dtype=_type(), shape=_attribute(7, _shape(rows, columns)))
    graph += _node("read", "ReadVariableOp", "w", dtype=_type())
    graph += _node("product", "MatMul", "x", "read", T=_type())
    signature = _entry(1, b"x", _tensor("x:0", -1, rows)) + _entry(2, b"y", _tensor("product:0", -1, columns))
    signature += _bytes(3, b"tensorflow/serving/predict")
    meta = _bytes(1, _bytes(4, b"serve")) + _bytes(2, graph) + _entry(5, b"serving_default", signature)
    (folder / "variables").mkdir(parents=True, exist_ok=True)
    (folder / "saved_model.pb").write_bytes(_number(1, 1) + _bytes(2, meta))
    data = weights.astype("<f4").tobytes()
    (folder / "variables" / "variables.data-00000-of-00001").write_bytes(data)
    header = _number(1, 1) + _bytes(3, _number(1, 1))
    variable = _number(1, _FLOAT) + _bytes(2, _shape(rows, columns)) + _number(5, len(data))
    (folder / "variables" / "variables.index").write_bytes(_table([(b"", header), (b"w", variable)]))
    return folder


def freeze(file: Path, weights: "np.ndarray[Any, Any]") -> Path:
    """``file`` as a frozen graph that computes the same."""
    rows, columns = weights.shape
    tensor = _number(1, _FLOAT) + _bytes(2, _shape(rows, columns)) + _bytes(4, weights.astype("<f4").tobytes())
    graph = _node("x", "Placeholder", dtype=_type(), shape=_attribute(7, _shape(-1, rows)))
    graph += _node("w", "Const", dtype=_type(), value=_attribute(8, tensor))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(graph + _node("y", "MatMul", "x", "w", T=_type()))
    return file


# -- protobuf ----------------------------------------------------------------------------


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    said = b""
    while value > 0x7F:
        said += bytes([value & 0x7F | 0x80])
        value >>= 7
    return said + bytes([value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _entry(field: int, key: bytes, value: bytes) -> bytes:
    return _bytes(field, _bytes(1, key) + _bytes(2, value))


def _node(name: str, kind: str, *inputs: str, **attributes: bytes) -> bytes:
    said = _bytes(1, name.encode()) + _bytes(2, kind.encode())
    said += b"".join(_bytes(3, i.encode()) for i in inputs)
    return _bytes(1, said + b"".join(_entry(5, key.encode(), value) for key, value in attributes.items()))


def _attribute(field: int, value: bytes) -> bytes:
    return _bytes(field, value)


def _type() -> bytes:
    return _number(6, _FLOAT)


def _shape(*dimensions: int) -> bytes:
    return b"".join(_bytes(2, _number(1, d)) for d in dimensions)


def _tensor(name: str, *dimensions: int) -> bytes:
    return _bytes(1, name.encode()) + _number(2, _FLOAT) + _bytes(3, _shape(*dimensions))


# -- tables ------------------------------------------------------------------------------


def _block(entries: list[tuple[bytes, bytes]]) -> bytes:
    said = b"".join(b"\0" + _varint(len(key)) + _varint(len(value)) + key + value for key, value in entries)
    return said + struct.pack("<II", 0, 1)


def _table(entries: list[tuple[bytes, bytes]]) -> bytes:
    # No compression, and a checksum that OpenVINO does not look at.
    trailer = b"\0" * 5
    data, meta = _block(entries), _block([])
    where = _varint(0) + _varint(len(data))
    index = _block([(entries[-1][0] + b"\0", where)])
    said = data + trailer + meta + trailer
    footer = _varint(len(data) + 5) + _varint(len(meta)) + _varint(len(said)) + _varint(len(index))
    return said + index + trailer + footer.ljust(40, b"\0") + struct.pack("<Q", _MAGIC)
