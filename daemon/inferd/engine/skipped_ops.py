"""Which operations may leave an output unwritten, so that it holds data of another run or uninitialised memory.

OpenVINO's CPU plugin skips an operation with an empty input. If the output is empty as well, that is right; if not,
nothing is written (OpenVINO fact 41). Some operations write all the same, or have an empty output whenever an input is
empty. For others, a rule says which dimensions must not be 0. An operation with neither is assumed to be skipped for
any empty dimension.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from inferd.engine.runtime import ov

# (input port, axis): one dimension of an input.
InputDim = tuple[int, int]
# An input port, and its axes that matter; None for all axes.
_Rule = tuple[int, Sequence[int] | None]
# The path to a nested operation: per level, the friendly name of the outer operation and the index of the body.
NodePath = tuple[tuple[str, int], ...]

_ELEMENTWISE = (
    "Abs Acos Acosh Add Asin Asinh Atan Atanh BatchNormInference BitwiseAnd BitwiseLeftShift BitwiseNot BitwiseOr "
    "BitwiseRightShift BitwiseXor Ceiling Clamp Convert ConvertLike ConvertPromoteTypes Cos Cosh CumSum Divide "
    "Elu Equal Erf Exp FakeConvert FakeQuantize Floor FloorMod GRN Gelu Greater GreaterEqual GroupNormalization "
    "HSigmoid HSwish HardSigmoid Identity IsFinite IsInf IsNaN LRN Less LessEqual Log LogSoftmax LogicalAnd "
    "LogicalNot LogicalOr LogicalXor MVN Maximum Minimum Mish Mod Multiply Negative NormalizeL2 NotEqual PRelu "
    "Power Relu ReverseSequence Roll Round Select Selu Sigmoid Sign Sin Sinh SoftPlus SoftSign Softmax Sqrt "
    "SquaredDifference Subtract Swish Tan Tanh Xor"
)
_MOVING = (
    "BatchToSpace Broadcast Concat DepthToSpace Pad Reshape ScatterElementsUpdate ScatterNDUpdate ScatterUpdate "
    "ShuffleChannels Slice SpaceToBatch SpaceToDepth Split Squeeze StridedSlice Tile Transpose Unsqueeze "
    "VariadicSplit"
)
# An empty sum is 0 and an empty product 1, as they should be. The mean of nothing is 0, and the maximum of nothing the
# lowest number of the type.
_REDUCING = (
    "Einsum EmbeddingBagOffsetsSum EmbeddingBagPackedSum EmbeddingSegmentsSum MatMul MatrixNms MulticlassNms "
    "NonZero NonMaxSuppression OneHot ReduceL1 ReduceL2 ReduceLogicalAnd ReduceLogicalOr ReduceMax ReduceMean "
    "ReduceMin ReduceProd ReduceSum ShapeOf"
)
_OTHERS = (
    "Assign Bucketize Constant Eye GRUCell If LSTMCell Loop Parameter RNNCell RandomUniform Range ReadValue Result"
)
_WRITTEN = frozenset(f"{_ELEMENTWISE} {_MOVING} {_REDUCING} {_OTHERS}".split())

_SEQUENCES = frozenset({"GRUSequence", "LSTMSequence", "RNNSequence"})


def _beyond_batch(node: "ov.Node") -> list[_Rule]:
    return [(0, range(1, _rank(node, 0)))]


def _axis_of_input(port: int) -> Callable[["ov.Node"], list[_Rule]]:
    """The axis given by a constant at input ``port``; every axis if it is not constant."""

    def rule(node: "ov.Node") -> list[_Rule]:
        axes = constant(node.input_value(port))
        return [(0, None if axes is None else [int(axis) for axis in axes])]

    return rule


def _axis_of_attribute(node: "ov.Node") -> list[_Rule]:
    return [(0, [int(node.get_attributes()["axis"])])]


def _gather_nd(node: "ov.Node") -> list[_Rule]:
    first = int(node.get_attributes().get("batch_dims", 0))
    indices = node.get_input_partial_shape(1)
    depth = indices[len(indices) - 1] if indices.rank.is_static and len(indices) else None
    if depth is None or depth.is_dynamic:
        return [(0, None)]
    return [(0, range(first, first + depth.get_length()))]


def _interpolate(node: "ov.Node") -> list[_Rule]:
    port = next((p for p in (3, 2) if node.get_input_size() > p), 0)
    axes = constant(node.input_value(port)) if port else None
    return [(0, None if axes is None else [int(axis) for axis in axes])]


def _slices(node: "ov.Node") -> list[_Rule]:
    """The inputs that an iterator slices per step. It raises if there is no step."""
    return [(d.input_index, [d.axis]) for d in node.get_input_descriptions() if hasattr(d, "axis")]


_RULES: dict[str, Callable[["ov.Node"], list[_Rule]]] = {
    **dict.fromkeys(
        (
            "AdaptiveAvgPool",
            "AdaptiveMaxPool",
            "AvgPool",
            "BinaryConvolution",
            "Convolution",
            "ConvolutionBackpropData",
            "DeformableConvolution",
            "GroupConvolution",
            "GroupConvolutionBackpropData",
            "MaxPool",
        ),
        _beyond_batch,
    ),
    **dict.fromkeys(_SEQUENCES, lambda _: [(0, [1])]),
    "Gather": _axis_of_input(2),
    "GatherElements": _axis_of_attribute,
    "GatherND": _gather_nd,
    "Interpolate": _interpolate,
    "ROIAlign": lambda _: [(0, None)],
    "ScaledDotProductAttention": lambda _: [(1, [-2])],
    "SearchSorted": lambda _: [(0, None)],
    "SegmentMax": lambda _: [(0, [0])],
    "TensorIterator": _slices,
    "TopK": _axis_of_attribute,
}


def is_sequence(node: "ov.Node") -> bool:
    """Whether it is a recurrent layer over a whole sequence, whose length is dimension 1 of its first input."""
    return node.get_type_name() in _SEQUENCES


def skipping_dims(node: "ov.Node") -> list[InputDim]:
    """The input dimensions of ``node`` that may be 0, as far as shapes are known, and then leave an output
    unwritten."""
    kind = node.get_type_name()
    if kind in _WRITTEN or all(_empty(output.partial_shape) for output in node.outputs()):
        return []
    rule = _RULES.get(kind)
    ports: list[_Rule] = [(port, None) for port in range(node.get_input_size())] if rule is None else rule(node)
    found = []
    for port, axes in ports:
        shape = node.get_input_partial_shape(port)
        if shape.rank.is_static:
            rank = len(shape)
            wanted = {axis % rank for axis in axes if -rank <= axis < rank} if axes is not None else set(range(rank))
            found += [(port, axis) for axis in sorted(wanted) if shape[axis].get_min_length() == 0]
    return found


def bodies(node: "ov.Node") -> list["ov.Model"]:
    """The models nested in ``node``."""
    kind = node.get_type_name()
    if kind == "If":
        return [node.get_function(0), node.get_function(1)]
    return [node.get_function()] if kind in ("Loop", "TensorIterator") else []


def node_label(node: "ov.Node") -> str:
    """The name of ``node`` for messages."""
    return f"{node.get_type_name()} '{node.get_friendly_name()}'"


def walk(model: "ov.Model", path: NodePath = ()) -> Iterator[tuple[NodePath, "ov.Node"]]:
    """All operations of ``model``, those of each body before the operation it belongs to."""
    for node in model.get_ordered_ops():
        for number, body in enumerate(bodies(node)):
            yield from walk(body, (*path, (node.get_friendly_name(), number)))
        yield path, node


def constant(value: "ov.Output") -> Any:
    """The elements of ``value``, flat, if it is a constant; else None."""
    node = value.get_node()
    return node.data.reshape(-1) if node.get_type_name() == "Constant" else None


def _empty(shape: "ov.PartialShape") -> bool:
    return bool(shape.rank.is_static) and any(dim.get_max_length() == 0 for dim in shape)


def _rank(node: "ov.Node", port: int) -> int:
    shape = node.get_input_partial_shape(port)
    return len(shape) if shape.rank.is_static else 0
