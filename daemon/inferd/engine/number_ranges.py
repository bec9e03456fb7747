"""Which integers and floats of a model its devices can't represent: ranges to check inputs against, and remarks.

The CPU plugin computes INT64, UINT64 and UINT32 as INT32, and FP64 as FP32; many of its integer operations go through
float32, which is exact up to 2**24 only (OpenVINO fact 25). GPU converts the same types, by its source code. For NPU
nothing is known, so everything other than the CPU alone is assumed to be just as narrow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from inferd.engine.runtime import ov
from inferd.errors import listed
from inferd.ranges import Number, Range
from inferd.tensors import DType, Signature, TensorSpec

_WIDE = {ov.Type.i64: DType.INT64, ov.Type.u64: DType.UINT64, ov.Type.u32: DType.UINT32, ov.Type.f64: DType.FP64}
# The types that devices compute these as.
_NARROWED = {DType.INT64: "INT32", DType.UINT64: "INT32", DType.UINT32: "INT32", DType.FP64: "FP32"}
_INTEGERS = (ov.Type.i32, ov.Type.i64, ov.Type.u32, ov.Type.u64)

_INT32 = (-(2**31), 2**31 - 1)
_IN_FLOAT32 = 2**24
_FLOAT32 = float(np.finfo(np.float32).max)

_OPERATIONS = {
    "hand numbers on": "Result Identity Reshape Squeeze Unsqueeze Transpose Concat Split VariadicSplit Slice "
    "StridedSlice Tile Broadcast Gather GatherElements GatherND ScatterUpdate ScatterElementsUpdate ScatterNDUpdate "
    "Select Roll",
    "give the same 32 bits, signed or not": "Add Subtract Multiply BitwiseAnd BitwiseOr BitwiseXor BitwiseNot",
    "keep all 32 bits of signed integers": "Convert ShapeOf NonZero OneHot Maximum Minimum Abs Negative Sign TopK "
    "Unique CumSum Range Clamp Equal:small NotEqual:small Less:small LessEqual:small Greater:small "
    "GreaterEqual:small",
}
_MOVES, _WRAPS, _KEEPS = (frozenset(names.split()) for names in _OPERATIONS.values())
# For these operations a large constant means "to the end", which it still does when clamped.
_UP_TO = frozenset(("Slice", "StridedSlice", "Loop", "TensorIterator"))
_NOT_COMPUTED = _MOVES | {"Parameter", "ShapeOf", "ReadValue", "Assign"}
_SHOWN = 3


def with_number_ranges(signature: Signature, model: "ov.Model", targets: Sequence[str], *, refused: bool) -> Signature:
    """``signature`` of ``model`` with the ranges of its inputs that the resolved devices ``targets`` represent, and
    with remarks on them. Unless ``refused``, values out of range are computed wrong rather than refused."""
    on_cpu = all(target == "CPU" for target in targets)
    device = ", ".join(targets)
    inputs = tuple(
        replace(spec, held=_held(spec, port, device, on_cpu=on_cpu, refused=refused))
        for spec, port in zip(signature.inputs, model.inputs, strict=True)
    )
    return replace(signature, inputs=inputs, remarks=(*_of_inputs(inputs), *_of_the_inside(model, device)))


def _held(spec: TensorSpec, port: Any, device: str, *, on_cpu: bool, refused: bool) -> Range | None:
    """The range for ``spec``, the input at ``port``; None if its whole type is represented."""
    dtype, wire = spec.dtype, spec.dtype.wire
    if dtype is not DType.INT32 and dtype not in _NARROWED:
        return None
    met = _met(port, on_cpu=on_cpu)
    if on_cpu and not met - {"Result"}:
        # Passed through, or converted to float right away.
        return None
    if dtype is DType.FP64:
        return Range(dtype.numpy, -_FLOAT32, _FLOAT32, f"{device} computes {wire} as FP32", refused)
    lo, hi = _INT32 if dtype.numpy.kind == "i" else (0, _INT32[1])
    if inexact := met - _MOVES - _WRAPS - _KEEPS:
        why = f"{device} may compute {min(inexact)} of {wire} in float32"
        return Range(dtype.numpy, max(lo, -_IN_FLOAT32), _IN_FLOAT32, why, refused)
    if dtype is DType.INT32 or (dtype is DType.UINT32 and on_cpu and met <= _MOVES | _WRAPS):
        return None
    return Range(dtype.numpy, lo, hi, f"{device} computes {wire} in 32 bits", refused)


def _met(port: Any, *, on_cpu: bool) -> set[str]:
    """The operations that integers from ``port`` reach while they have 32 bits or more; for other types, only the first
    operations."""
    met: set[str] = set()
    seen: set[tuple[str, int]] = set()
    ahead = [port]
    while ahead:
        source = ahead.pop()
        for target in source.get_target_inputs():
            node = target.get_node()
            if on_cpu and source is port and _to_float(node) and port.element_type in _INTEGERS:
                continue
            name = _name(node)
            met.add(name)
            # The output of ShapeOf holds no values of the input.
            for output in node.outputs() if name not in ("Result", "ShapeOf") else ():
                key = (node.get_name(), output.get_index())
                if output.element_type in _INTEGERS and key not in seen:
                    seen.add(key)
                    ahead.append(output)
    return met


def _to_float(node: Any) -> bool:
    """Whether ``node`` converts integers to float: directly after an input it sees all of their bits."""
    return bool(node.get_type_name() == "Convert" and node.get_output_element_type(0) in (ov.Type.f32, ov.Type.f64))


def _name(node: Any) -> str:
    """The type of ``node``, with a suffix if that affects its precision."""
    name = str(node.get_type_name())
    if f"{name}:small" in _KEEPS and any(_is_small(source.get_node()) for source in node.input_values()):
        # Rounding never moves a number past one that float32 represents exactly.
        return f"{name}:small"
    if name.startswith("Scatter") and (how := node.get_attributes().get("reduction", "none")) != "none":
        return f"{name} ({how})"
    return name


def _is_small(node: Any) -> bool:
    """Whether ``node`` is an integer constant that no other integer is rounded to."""
    if node.get_type_name() != "Constant":
        return False
    numbers = np.asarray(node.data)
    return bool(((numbers > -_IN_FLOAT32) & (numbers < _IN_FLOAT32)).all())


def _of_inputs(inputs: Sequence[TensorSpec]) -> Iterator[str]:
    for spec in inputs:
        if (held := spec.held) is not None:
            others = "others are refused" if held.refused else "others are computed wrong"
            yield f"input '{spec.name}' holds {held} ({held.why}); {others}"


def _of_the_inside(model: "ov.Model", device: str) -> Iterator[str]:
    """Remarks on what can't be checked: overflows inside the model, and clamped constants."""
    computed: set[DType] = set()
    clamped: list[str] = []
    apart: set[str] = set()
    for node in model.get_ops():
        types = {_WIDE.get(node.get_output_element_type(n)) for n in range(node.get_output_size())}
        if types <= {None}:
            continue
        kind = node.get_type_name()
        if kind == "Constant":
            if (beyond := _beyond(node)) is not None:
                clamped.append(f"{beyond:g} in '{node.get_friendly_name()}'")
        elif kind not in _NOT_COMPUTED and not types <= computed | {None} and _of_inputs_too(node, apart):
            used = (o.element_type for o in node.outputs() if o.get_target_inputs())
            computed |= {_WIDE[t] for t in used if t in _WIDE}
    for dtype in sorted(computed, key=lambda t: t.wire):
        yield f"{device} computes {dtype.wire} inside of the model as {_NARROWED[dtype]}; overflows there go undetected"
    if clamped:
        yield f"{device} clamps constants that are out of its range: {listed(clamped, _SHOWN)}"


def _of_inputs_too(node: Any, apart: set[str]) -> bool:
    """Whether values of a request reach ``node``, shapes aside. ``apart`` collects the names of nodes that none
    reaches."""
    ahead, seen = [node], set[str]()
    while ahead:
        node = ahead.pop()
        kind, name = node.get_type_name(), node.get_name()
        if kind in ("Parameter", "ReadValue"):
            return True
        if kind not in ("Constant", "ShapeOf") and name not in apart and name not in seen:
            seen.add(name)
            ahead += [source.get_node() for source in node.input_values()]
    apart |= seen
    return False


def _beyond(constant: Any) -> Number | None:
    """A finite value of ``constant`` that the devices clamp; None if there is none, or if clamping changes nothing."""
    dtype = _WIDE.get(constant.get_output_element_type(0))
    if dtype is None:
        return None
    if all(target.get_node().get_type_name() in _UP_TO for target in constant.output(0).get_target_inputs()):
        return None
    numbers = np.asarray(constant.data).ravel()
    lo, hi = (-_FLOAT32, _FLOAT32) if dtype is DType.FP64 else _INT32
    found = numbers[np.isfinite(numbers) & ((numbers < lo) | (numbers > hi))]
    return found[0].item() if found.size else None
