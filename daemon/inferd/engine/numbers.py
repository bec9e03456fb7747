"""What a model's devices can't hold of its numbers: which inputs are to be looked at, and what is said of the rest.

The CPU plugin computes INT64, UINT64 and UINT32 as INT32, and FP64 as FP32; many operations on integers go by float32,
where not every one beyond 2**24 is another's neighbour (OpenVINO facts 25 and 39 to 41). GPU converts the same types by
its source, and of NPU nothing better is known, so what is not the CPU alone is taken to be as narrow throughout.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from inferd.engine.runtime import ov
from inferd.errors import listed
from inferd.ranges import Number, Range
from inferd.tensors import DType, Signature, TensorSpec

_INTEGERS = {"i32": DType.INT32, "i64": DType.INT64, "u32": DType.UINT32, "u64": DType.UINT64}
# As what the devices compute what they narrow.
_NARROWED = {DType.INT64: "INT32", DType.UINT64: "INT32", DType.UINT32: "INT32", DType.FP64: "FP32"}
_WIDE = {"i64": DType.INT64, "u64": DType.UINT64, "u32": DType.UINT32, "f64": DType.FP64}

_INT32 = (-(2**31), 2**31 - 1)
_IN_FLOAT32 = 2**24
_FLOAT32 = float(np.finfo(np.float32).max)

_OPERATIONS = {
    "hand numbers on": "Result Identity Reshape Squeeze Unsqueeze Transpose Concat Split VariadicSplit Slice "
    "StridedSlice Tile Broadcast Gather GatherElements GatherND ScatterUpdate ScatterElementsUpdate ScatterNDUpdate "
    "Select Roll",
    "give the same 32 bits, signed or not": "Add Subtract Multiply BitwiseAnd BitwiseOr BitwiseXor BitwiseNot",
    "keep all 32 bits of signed integers": "Convert ShapeOf NonZero Maximum Minimum Abs Negative TopK Unique CumSum "
    "Range",
}
_MOVES, _WRAPS, _KEEPS = (frozenset(names.split()) for names in _OPERATIONS.values())
# A constant for these says "to the end", which it still does when it is clamped.
_UP_TO = frozenset(("Slice", "StridedSlice", "Loop", "TensorIterator"))
# What comes out of these is not computed from a request's numbers.
_NOT_OF_INPUTS = frozenset(("Constant", "ShapeOf", "Result", "Assign"))
_SHOWN = 3


def told(signature: Signature, model: "ov.Model", targets: Sequence[str], *, refused: bool) -> Signature:
    """``signature`` of ``model`` with the numbers that the resolved devices ``targets`` hold of its inputs, and with
    what there is to say of them. Where they are not to be ``refused``, others are computed with all the same."""
    on_cpu = all(target == "CPU" for target in targets)
    device = ", ".join(targets)
    inputs = tuple(
        replace(spec, held=_held(spec, port, device, on_cpu=on_cpu, refused=refused))
        for spec, port in zip(signature.inputs, model.inputs, strict=True)
    )
    return replace(signature, inputs=inputs, remarks=(*_of_inputs(inputs), *_of_the_inside(model, device)))


def _held(spec: TensorSpec, port: Any, device: str, *, on_cpu: bool, refused: bool) -> Range | None:
    """What is held of ``spec``, the input at ``port``; None where that is all of its type."""
    dtype, wire = spec.dtype, spec.dtype.wire
    if dtype is not DType.FP64 and dtype not in _INTEGERS.values():
        return None
    met = _met(port, on_cpu=on_cpu)
    if on_cpu and not met - {"Result"}:
        # Handed on untouched, or turned into float32 right away.
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
    """The operations that the integers at ``port`` come to, as long as they are integers of 32 bits or more; of other
    types, those that they come to first."""
    met: set[str] = set()
    seen: set[tuple[str, int]] = set()
    ahead = [port]
    while ahead:
        source = ahead.pop()
        for target in source.get_target_inputs():
            node = target.get_node()
            if on_cpu and source is port and _to_float32(node) and port.element_type.get_type_name() in _INTEGERS:
                continue
            name = _name(node)
            met.add(name)
            # What ShapeOf gives is not what came in.
            for output in node.outputs() if name not in ("Result", "ShapeOf") else ():
                key = (node.get_name(), output.get_index())
                if output.element_type.get_type_name() in _INTEGERS and key not in seen:
                    seen.add(key)
                    ahead.append(output)
    return met


def _to_float32(node: Any) -> bool:
    """Whether ``node`` makes float32 of integers: right behind an input that keeps all of their bits."""
    return bool(node.get_type_name() == "Convert" and node.output(0).element_type == ov.Type.f32)


def _name(node: Any) -> str:
    """The type of ``node``, with what of its attributes says how it computes."""
    name = str(node.get_type_name())
    if name == "Convert" and node.output(0).element_type == ov.Type.f64:
        return "Convert to FP64"
    if name.startswith("Scatter") and (how := node.get_attributes().get("reduction", "none")) != "none":
        return f"{name} ({how})"
    return name


def _of_inputs(inputs: Sequence[TensorSpec]) -> Iterator[str]:
    for spec in inputs:
        if (held := spec.held) is not None:
            others = "others are refused" if held.refused else "others are computed wrong"
            yield f"input '{spec.name}' holds {held} ({held.why}); {others}"


def _of_the_inside(model: "ov.Model", device: str) -> Iterator[str]:
    """What is computed of the inputs beyond what is held goes unseen; so do constants."""
    computed: set[DType] = set()
    clamped: list[str] = []
    of_inputs: set[str] = set()
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Constant":
            if (beyond := _beyond(node)) is not None:
                clamped.append(f"{beyond:g} in '{node.get_friendly_name()}'")
        elif kind in ("Parameter", "ReadValue"):
            of_inputs.add(node.get_name())
        elif kind not in _NOT_OF_INPUTS and any(v.get_node().get_name() in of_inputs for v in node.input_values()):
            of_inputs.add(node.get_name())
            if kind not in _MOVES:
                used = [o for o in node.outputs() if o.get_target_inputs()]
                computed |= {_WIDE[t] for o in used if (t := o.element_type.get_type_name()) in _WIDE}
    for dtype in sorted(computed, key=lambda t: t.wire):
        yield f"{device} computes {dtype.wire} inside of the model as {_NARROWED[dtype]}; an overflow there goes unseen"
    if clamped:
        yield f"{device} clamps constants that are out of its range: {listed(clamped, _SHOWN)}"


def _beyond(constant: Any) -> Number | None:
    """A finite number of ``constant`` that the devices clamp, None where it has none or where that changes nothing."""
    dtype = _WIDE.get(constant.output(0).element_type.get_type_name())
    if dtype is None:
        return None
    if all(target.get_node().get_type_name() in _UP_TO for target in constant.output(0).get_target_inputs()):
        return None
    numbers = np.asarray(constant.data).ravel()
    lo, hi = (-_FLOAT32, _FLOAT32) if dtype is DType.FP64 else _INT32
    found = numbers[np.isfinite(numbers) & ((numbers < lo) | (numbers > hi))]
    return found[0].item() if found.size else None
