"""ReduceLogSumExp of the ONNX opsets 13 to 17, which OpenVINO reads wrong.

It reduces all axes, as if the attribute ``axes`` were missing (OpenVINO fact 48), and its model no longer has them.
Only the fields that lead to the attribute are parsed (onnx.proto).
"""

from collections.abc import Iterator
from pathlib import Path

from inferd.engine.onnx_constants import fields, mapped
from inferd.engine.runtime import ov
from inferd.engine.skipped_ops import walk

# Field numbers, by message.
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_FUNCTION = 7, 8, 25
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE = 1
_FUNCTION_NODE, _FUNCTION_OPSET = 7, 9
_NODE_NAME, _NODE_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 1, 6, 11

_WRONG = range(13, 18)
_OWN = ("", "ai.onnx")


def misread(model: "ov.Model", file: Path) -> str:
    """The operation of the ONNX ``file`` that ``model``, read from it, has wrong; empty if there is none.

    Raises RuntimeError if the file can't be read.
    """
    # What OpenVINO turns a ReduceLogSumExp into.
    if not {"Exp", "Log", "ReduceSum"} <= {node.get_type_name() for _, node in walk(model)}:
        return ""
    try:
        found = next(_reductions(file), None)
    except (OSError, ValueError, IndexError) as error:
        raise RuntimeError(f"its operations can't be read: {error}") from error
    if found is None:
        return ""
    opset, name = found
    return (
        f"ReduceLogSumExp '{name}' of ONNX opset {opset} has axes, which OpenVINO ignores; "
        "export it with opset 18 or newer"
    )


def _reductions(file: Path) -> Iterator[tuple[int, str]]:
    """The opset and name of each ReduceLogSumExp that has axes and an affected opset."""
    parts: list[tuple[memoryview, int, int]] = []
    opset = 0
    for number, value in fields(mapped(file)):
        if isinstance(value, int):
            continue
        if number == _MODEL_GRAPH:
            parts.append((value, _GRAPH_NODE, 0))
        elif number == _MODEL_FUNCTION:
            parts.append((value, _FUNCTION_NODE, _FUNCTION_OPSET))
        elif number == _MODEL_OPSET:
            opset = _version(value) or opset
    for part, node_field, opset_field in parts:
        own = 0
        for number, value in fields(part) if opset_field else ():
            if number == opset_field and not isinstance(value, int):
                own = _version(value) or own
        if (own or opset) in _WRONG:
            for name in _with_axes(part, node_field):
                yield own or opset, name


def _version(opset: memoryview) -> int:
    """The version of ONNX's own operator set; 0 if ``opset`` is another set."""
    domain, version = "", 0
    for number, value in fields(opset):
        if number == _OPSET_DOMAIN and not isinstance(value, int):
            domain = bytes(value).decode()
        elif number == _OPSET_VERSION and isinstance(value, int):
            version = value
    return version if domain in _OWN else 0


def _with_axes(part: memoryview, node_field: int) -> Iterator[str]:
    """The names of such operations in a graph or function, and in all graphs inside it."""
    for number, node in fields(part):
        if number != node_field or isinstance(node, int):
            continue
        texts, attributes = {_NODE_NAME: "", _NODE_TYPE: "", _NODE_DOMAIN: ""}, set[str]()
        for field, value in fields(node):
            if isinstance(value, int):
                continue
            if field in texts:
                texts[field] = bytes(value).decode()
            elif field == _NODE_ATTRIBUTE:
                for kind, inner in fields(value):
                    if isinstance(inner, int):
                        continue
                    if kind == _ATTRIBUTE_NAME:
                        attributes.add(bytes(inner).decode())
                    elif kind in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                        yield from _with_axes(inner, _GRAPH_NODE)
        if texts[_NODE_TYPE] == "ReduceLogSumExp" and texts[_NODE_DOMAIN] in _OWN and "axes" in attributes:
            yield texts[_NODE_NAME]
