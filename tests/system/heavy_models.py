"""Models that gain from batches or take long, and answer exactly."""

import numpy as np

from inferd.engine.runtime import ov
from tests.engine import models as small

WIDTH = 16
"""Columns of ``x``."""

_HIDDEN, _LAYERS = 1536, 4

_op = ov.opset13


def doubling() -> "ov.Model":
    """``x`` FP32 [rows,16] -> ``y`` = 2 x. Reading its weights takes most of a run's time: more rows cost little."""
    x = small.parameter([-1, WIDTH])
    return small.model({"y": _op.add(_op.add(x, x), _nothing(x))}, [x])


def widening() -> "ov.Model":
    """``x`` FP32 [rows,16], ``by`` INT64 [rows,1] -> ``y`` = x, at the same cost.

    The run fails unless all of ``by`` are 0: x can't be broadcast to 16 + by columns.
    """
    x, by = small.parameter([-1, WIDTH]), small.parameter([-1, 1], ov.Type.i64, "by")
    rows = _op.gather(_op.shape_of(x), _op.constant([0]), _op.constant(0))
    columns = _op.add(_op.reduce_max(by, _op.constant([0, 1])), _op.constant(np.int64(WIDTH)))
    shape = _op.concat([rows, _op.unsqueeze(columns, _op.constant(0))], 0)
    return small.model({"y": _op.broadcast(_op.add(x, _nothing(x)), shape)}, [x, by])


def _nothing(x: "ov.Node") -> "ov.Node":
    """Zeros [rows,1] that can only be had by way of the weights."""
    value = _op.tile(x, _op.constant([1, _HIDDEN // WIDTH]))
    weights = np.random.default_rng(0).standard_normal((_LAYERS, _HIDDEN, _HIDDEN)).astype(np.float32)
    for layer in weights:
        value = _op.tanh(_op.matmul(value, _op.constant(layer / np.float32(np.sqrt(_HIDDEN))), False, False))
    return _op.multiply(_op.reduce_sum(value, _op.constant([1]), True), _op.constant(np.float32(0)))
