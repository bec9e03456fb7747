"""Models that end, fill or hold up the process that loads them (OpenVINO facts 33 and 34)."""

from typing import Any

import numpy as np

from inferd.engine.runtime import ov
from tests.engine.models import model, op, parameter


def _constant(value: Any, kind: Any) -> Any:
    return op.constant(np.array(value, kind))


def divides_by_zero() -> ov.Model:
    """Ends the process that compiles it by SIGFPE: OpenVINO computes 5 mod 0 while it folds constants."""
    x = parameter([1], ov.Type.i32)
    remainder = op.mod(_constant([5], np.int32), _constant([0], np.int32))
    return model({"y": op.add(x, remainder)}, [x])


def reads_out_of_bounds() -> ov.Model:
    """Ends the process that runs it by SIGSEGV: the index of a GatherND is taken as it comes."""
    x = parameter([4])
    return model({"y": op.gather_nd(x, _constant([[1_000_000_000]], np.int64))}, [x])


def fills_memory() -> ov.Model:
    """A file of some hundred bytes that asks for 32 GiB when constants are folded."""
    x = parameter([1])
    huge = op.tile(_constant([1.0], np.float32), _constant([1 << 33], np.int64))
    return model({"y": op.add(x, op.reduce_sum(huge, _constant([0], np.int64)))}, [x])


def huge_input(elements: int) -> ov.Model:
    """Nothing to compute, on ``elements`` float32 numbers that an infer request holds."""
    x = parameter([elements])
    return model({"y": op.relu(x)}, [x])


def deep(layers: int) -> ov.Model:
    """So many layers, one after the other: compiling takes more than proportionally longer."""
    x = parameter([4])
    node = x
    for _ in range(layers):
        node = op.relu(node)
    return model({"y": node}, [x])
