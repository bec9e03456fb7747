"""Constants without elements in an ONNX file, which OpenVINO reads as a single 0.

If a constant or initializer has a dimension of 0, OpenVINO's model has a scalar of the same name in its place
(OpenVINO fact 44). The file tells which ones. Only the fields that lead to them are parsed (onnx.proto).
"""

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from inferd import regular_file
from inferd.engine.runtime import ov
from inferd.engine.skipped_ops import walk
from inferd.tensors import Shape

# Field numbers, by message.
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_OUTPUT, _NODE_ATTRIBUTE = 2, 5
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 5, 6, 11
_TENSOR_DIMS, _TENSOR_NAME = 1, 8


def restore(model: "ov.Model", file: Path) -> None:
    """Restore the empty constants of ``model``, read from the ONNX ``file``; in place.

    Raises RuntimeError if the result is not valid, or the file can't be read.
    """
    suspects = [node for _, node in walk(model) if _may_be_empty(node)]
    if not suspects:
        return
    try:
        empty = empty_constants(file)
    except (OSError, ValueError, IndexError) as error:
        raise RuntimeError(f"its constants can't be read: {error}") from error
    changed = False
    for node in suspects:
        output = node.output(0)
        names = output.get_names()
        shape = next((empty[name] for name in sorted(names) if name in empty), None)
        if shape is not None:
            nothing = ov.opset15.constant(np.zeros(shape, np.float32), output.element_type).output(0)
            for target in output.get_target_inputs():
                target.replace_source_output(nothing)
            output.get_tensor().set_names(set())
            nothing.get_tensor().set_names(names)
            changed = True
    if changed:
        model.validate_nodes_and_infer_types()


def empty_constants(file: Path) -> Mapping[str, Shape]:
    """The shapes of the constants in the ONNX ``file`` that have a dimension of 0, by name.

    Names that a constant of a nested graph has as well are left out. Raises OSError, and ValueError or IndexError if
    ``file`` is not ONNX.
    """
    shapes: dict[str, Shape] = {}
    doubtful: set[str] = set()
    for number, value in fields(mapped(file)):
        if number == _MODEL_GRAPH and not isinstance(value, int):
            for name, shape in _constants(value):
                if shapes.setdefault(name, shape) != shape:
                    doubtful.add(name)
    return {name: shape for name, shape in shapes.items() if 0 in shape and name not in doubtful}


def mapped(file: Path) -> memoryview:
    """The bytes of ``file``. Raises OSError, and ValueError if it is empty."""
    with regular_file.opened(file) as stream:
        # Unmapped with its last view.
        return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def _may_be_empty(node: "ov.Node") -> bool:
    if node.get_type_name() != "Constant" or list(node.output(0).shape) or not node.output(0).get_names():
        return False
    return node.output(0).element_type != ov.Type.string and not np.any(node.data)


def _constants(graph: memoryview) -> Iterator[tuple[str, Shape]]:
    """The constants of ``graph`` and of all graphs inside it, by name."""
    for number, value in fields(graph):
        if isinstance(value, int):
            continue
        if number == _GRAPH_INITIALIZER:
            yield _named(value)
        elif number == _GRAPH_NODE:
            name = ""
            for field, part in fields(value):
                if field == _NODE_OUTPUT and not isinstance(part, int) and not name:
                    name = bytes(part).decode()
                elif field == _NODE_ATTRIBUTE and not isinstance(part, int):
                    for kind, attribute in fields(part):
                        if isinstance(attribute, int):
                            continue
                        if kind == _ATTRIBUTE_TENSOR:
                            yield name, _named(attribute)[1]
                        elif kind in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                            yield from _constants(attribute)


def _named(tensor: memoryview) -> tuple[str, Shape]:
    name, dims = "", []
    for number, value in fields(tensor):
        if number == _TENSOR_NAME and not isinstance(value, int):
            name = bytes(value).decode()
        elif number == _TENSOR_DIMS:
            # One field per number, or all packed into one field.
            dims += [value] if isinstance(value, int) else _packed(value)
    return name, tuple(dims)


def _packed(data: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(data):
        number, at = _varint(data, at)
        found.append(number)
    return found


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: field number and value."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if at + length > len(data):
            raise ValueError("a field runs past its end")
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7
