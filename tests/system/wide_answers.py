"""A model whose responses are far larger than its requests."""

import numpy as np

from inferd._pb import open_inference_pb2 as pb
from inferd.engine.runtime import ov
from tests.system.wire import request

ANSWER = 1 << 20
"""Bytes of ``y``."""

_op = ov.opset13


def model() -> "ov.Model":
    """``value`` FP32 [1] -> ``y`` FP32 [262144], all of them ``value``."""
    value = _op.parameter([1], ov.Type.f32)
    value.output(0).set_names({"value"})
    y = _op.broadcast(value, _op.constant([ANSWER // 4]))
    y.output(0).set_names({"y"})
    return ov.Model([y], [value], "wide")


def ask(number: int) -> pb.ModelInferRequest:
    """The request ``number`` of a stream, to the model ``wide``."""
    return request("wide", {"value": np.array([number], np.float32)}, str(number))
