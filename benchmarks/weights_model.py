"""An MLP whose cost is reading its weights: a run of a few rows takes hardly longer than a run of one."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUT = "x"
_BATCH = "rows"


def save(file: Path, widths: Sequence[int]) -> None:
    """Write the ONNX model ``x`` FP32 [rows,first width] -> ``y`` FP32 [rows,last width] to ``file``.

    Each pair of neighbouring ``widths`` is a matrix product, with a ReLU between two of
    them; the matrices are random, the same each time, and take four bytes a weight.
    """
    chance = np.random.default_rng(0)
    nodes, weights, value = [], [], INPUT
    last = len(widths) - 2
    for layer, (rows, columns) in enumerate(pairwise(widths)):
        # Keeps the signal's variance, so that no value becomes denormal, which would be slow.
        matrix = chance.standard_normal((rows, columns), np.float32) * np.float32(np.sqrt(2 / rows))
        weights.append(numpy_helper.from_array(matrix, f"w{layer}"))
        product = "y" if layer == last else f"product{layer}"
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [product]))
        if layer < last:
            value = f"hidden{layer}"
            nodes.append(helper.make_node("Relu", [product], [value]))
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [_BATCH, widths[0]])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [_BATCH, widths[-1]])]
    graph = helper.make_graph(nodes, "weights", inputs, outputs, weights)
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
