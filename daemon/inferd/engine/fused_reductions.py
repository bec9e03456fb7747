"""Keeps constants after a reduction of three dimensions from being read along the wrong axis, or past their end.

OpenVINO's CPU plugin fuses elementwise operations into a preceding reduction. If that is over the first or last of
three dimensions, a constant along the middle dimension is indexed by the first one (OpenVINO fact 49). With four
dimensions the index is right, so such a reduction gets one more dimension. Other models are not changed. A compiled
model that still has this error, or a similar one after a matrix product (OpenVINO fact 50), is refused.
"""

from collections.abc import Iterator

import numpy as np

from inferd.engine.runtime import ov
from inferd.engine.skipped_ops import constant, node_label, walk

REVISION = 1
"""The revision of these repairs: blobs of another revision are compiled again."""

_op = ov.opset15

_REDUCTIONS = {
    "ReduceL1": _op.reduce_l1,
    "ReduceL2": _op.reduce_l2,
    "ReduceMax": _op.reduce_max,
    "ReduceMean": _op.reduce_mean,
    "ReduceMin": _op.reduce_min,
    "ReduceProd": _op.reduce_prod,
    "ReduceSum": _op.reduce_sum,
}
# OpenVINO turns pooling to a single element into a reduction.
_POOLS = {"AdaptiveAvgPool": _op.reduce_mean, "AdaptiveMaxPool": _op.reduce_max}

# Operations that may be fused, or precede a fused one; and those that elementwise operations are moved ahead of.
_ELEMENTWISE = (
    "Abs Acos Acosh Add Asin Asinh Atan Atanh BatchNormInference Ceiling Clamp Convert ConvertLike Cos Cosh Divide Elu "
    "Equal Erf Exp FakeQuantize Floor FloorMod Gelu Greater GreaterEqual HSigmoid HSwish HardSigmoid Identity Less "
    "LessEqual Log Maximum Minimum Mish Mod Multiply Negative NotEqual PRelu Power Relu Round Select Selu Sigmoid Sign "
    "Sin Sinh SoftPlus SoftSign Sqrt SquaredDifference Subtract Swish Tan Tanh"
)
_MOVING = "Reshape Squeeze Transpose Unsqueeze"
_PASSED = dict.fromkeys(_ELEMENTWISE.split(), True) | dict.fromkeys(_MOVING.split(), False)
"""Whether each operation is elementwise."""


def repair(model: "ov.Model") -> None:
    """Give each reduction of three dimensions in ``model`` a fourth if a constant may be fused into it; in place."""
    affected = [(node, axis) for _, node in walk(model) if (axis := _reduced(node)) is not None and _meets(node)]
    for node, axis in affected:
        _with_four_dimensions(node, axis)
    if affected:
        model.validate_nodes_and_infer_types()


def misread(model: "ov.Model", compiled: "ov.CompiledModel") -> str:
    """The operation of ``model`` that, as ``compiled`` for the CPU, reads a constant wrong; empty if none."""
    suspects = [found for node in compiled.get_runtime_model().get_ops() if (found := _suspect(node)) is not None]
    if not suspects:
        return ""
    by_name = {node.get_friendly_name(): node for _, node in walk(model)}
    for kind, names in suspects:
        for node in (by_name[name] for name in names if name in by_name):
            if _read_wrong(kind, node):
                return (
                    f"{node_label(node)} is fused with a {kind}, where the CPU reads its constant along the wrong axis"
                )
    return ""


def _suspect(node: "ov.Node") -> tuple[str, list[str]] | None:
    """The kind and the operations of a compiled ``node`` that may read a constant wrong; else None."""
    info = node.get_rt_info()
    kind, names = str(info["layerType"].astype(str)), str(info["originalLayersNames"].astype(str)).split(",")
    if len(names) < 2:
        return None
    if kind == "Reduce" and len(node.get_input_partial_shape(0)) == 3:
        # With a single dimension there is no wrong axis.
        dims = node.get_output_partial_shape(0)
        return (kind, names) if sum(dim.is_dynamic or dim.get_length() != 1 for dim in dims) > 1 else None
    if kind in ("FullyConnected", "MatMul") and len(node.get_output_partial_shape(0)) > 2:
        return kind, names
    return None


def _read_wrong(kind: str, node: "ov.Node") -> bool:
    """Whether ``node`` has a constant that is read wrong if fused with a ``kind``."""
    if kind == "Reduce":
        return any(_constants(node))
    if kind == "MatMul" and node.get_type_name() != "FakeQuantize":
        return False
    # A product reads each along the last axis.
    shapes = [value.partial_shape for value in _constants(node)]
    return any(len(shape) > 1 and shape[-1].is_static and shape[-1].get_length() == 1 for shape in shapes)


def _reduced(node: "ov.Node") -> int | None:
    """The axis, 0 or 2, that ``node`` reduces of three dimensions; None if it is not such a reduction."""
    kind = node.get_type_name()
    if kind not in _REDUCTIONS and kind not in _POOLS:
        return None
    shape = node.get_input_partial_shape(0)
    if shape.rank.is_dynamic or len(shape) != 3 or (shape[1].is_static and shape[1].get_length() == 1):
        return None
    given = constant(node.input_value(1))
    if given is None:
        return None
    if kind in _POOLS:
        indices_used = node.get_output_size() > 1 and node.output(1).get_target_inputs()
        return 2 if given.tolist() == [1] and not indices_used else None
    axes = {int(axis) % 3 for axis in given}
    return axes.pop() if axes in ({0}, {2}) else None


def _meets(node: "ov.Node") -> bool:
    """Whether a constant of several elements is combined with the output of ``node``, with only elementwise operations
    and changes of shape in between."""
    ahead, seen = [node.output(0)], set[str]()
    while ahead:
        value = ahead.pop()
        for target in value.get_target_inputs():
            taker = target.get_node()
            kind, name = taker.get_type_name(), taker.get_name()
            if name in seen:
                continue
            if kind in _PASSED:
                seen.add(name)
                if any(_constants(taker)):
                    return True
                ahead.append(taker.output(0))
    return False


def _constants(node: "ov.Node") -> Iterator["ov.Output"]:
    """Inputs of ``node`` computed from constants alone, with more than one element."""
    if not _PASSED.get(node.get_type_name()):
        return
    for value in node.input_values():
        shape = value.partial_shape
        one = shape.is_static and int(np.prod(shape.to_shape())) == 1
        if not one and _made_of_constants(value):
            yield value


def _made_of_constants(value: "ov.Output") -> bool:
    ahead, seen = [value.get_node()], set[str]()
    while ahead:
        node = ahead.pop()
        if node.get_type_name() in ("Parameter", "ReadValue"):
            return False
        # A ShapeOf may be constant even if its input is not.
        if node.get_name() not in seen and node.get_type_name() != "ShapeOf":
            seen.add(node.get_name())
            ahead += [source.get_node() for source in node.input_values()]
    return True


def _with_four_dimensions(node: "ov.Node", axis: int) -> None:
    kind, old = node.get_type_name(), node.output(0)
    # The new dimension is reduced as well, without keeping it: otherwise OpenVINO would optimise it away.
    reduce = _REDUCTIONS.get(kind) or _POOLS[kind]
    data = _op.unsqueeze(node.input_value(0), _numbers(2))
    made = reduce(data, _numbers(*((0, 2) if axis == 0 else (2, 3))), keep_dims=False)
    if kind in _POOLS or node.get_attributes()["keep_dims"]:
        made = _op.unsqueeze(made, _numbers(axis))
    made.set_friendly_name(node.get_friendly_name())
    names = old.get_names()
    for target in old.get_target_inputs():
        target.replace_source_output(made.output(0))
    old.get_tensor().set_names(set())
    made.output(0).get_tensor().set_names(names)


def _numbers(*numbers: int) -> "ov.Node":
    return _op.constant(np.array(numbers, np.int64))
