"""Models that plain_operators.py of examples/ has rewritten give in OpenVINO what they gave in ONNX Runtime."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

FILE = Path(__file__).resolve().parent.parent.parent / "examples/scikit_learn/plain_operators.py"
_spec = importlib.util.spec_from_file_location("plain_operators", FILE)
assert _spec is not None
assert _spec.loader is not None
plain_operators = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plain_operators)

ROWS = np.array([[0, 1, 2], [3, 0.5, -1], [np.nan, 2, 2.5], [1, 1, 1], [-2, 7, 0.25]], np.float32)

# Two trees over three features: feature 0 <= 0.5 ? (feature 2 <= 1.5 ? a : b) : c, and feature 1 <= 1 ? d : e.
TREES = {
    "nodes_treeids": [0, 0, 0, 0, 0, 1, 1, 1],
    "nodes_nodeids": [0, 1, 2, 3, 4, 0, 1, 2],
    "nodes_featureids": [0, 2, 0, 0, 0, 1, 0, 0],
    "nodes_values": [0.5, 1.5, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0],
    "nodes_modes": ["BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF", "BRANCH_LEQ", "LEAF", "LEAF"],
    "nodes_truenodeids": [1, 2, 0, 0, 0, 1, 0, 0],
    "nodes_falsenodeids": [4, 3, 0, 0, 0, 2, 0, 0],
}
LEAVES = [(0, 2), (0, 3), (0, 4), (1, 1), (1, 2)]


def model(node: onnx.NodeProto, outputs: dict[str, int], constants: dict[str, Any] | None = None) -> onnx.ModelProto:
    """One node of ai.onnx.ml on x, float32 [rows, 3]; ``outputs`` are names and element types."""
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info(name, kind, [None] * (1 + (name != "label"))) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def of_trees(kind: str, columns: list[int], **attributes: Any) -> onnx.NodeProto:
    """An ensemble whose leaves say something different for each of ``columns``."""
    rows = [(tree, node, column) for tree, node in LEAVES for column in columns]
    said = {
        f"{kind}_treeids": [tree for tree, _, _ in rows],
        f"{kind}_nodeids": [node for _, node, _ in rows],
        f"{kind}_ids": [column for _, _, column in rows],
        f"{kind}_weights": [0.1 * i - 0.3 for i in range(len(rows))],
    }
    outputs = ["label", "scores"] if kind == "class" else ["scores"]
    name = "TreeEnsembleClassifier" if kind == "class" else "TreeEnsembleRegressor"
    return helper.make_node(name, ["x"], outputs, domain="ai.onnx.ml", **TREES, **said, **attributes)


CLASSIFIED = {"label": TensorProto.INT64, "scores": TensorProto.FLOAT}
SCORED = {"scores": TensorProto.FLOAT}

CASES = {
    "a regressor of two targets": model(of_trees("target", [0, 1], n_targets=2, base_values=[1.0, 2.0]), SCORED),
    "an average": model(of_trees("target", [0], n_targets=1, aggregate_function="AVERAGE"), SCORED),
    "three classes": model(of_trees("class", [0, 1, 2], classlabels_int64s=[5, 7, 9]), CLASSIFIED),
    "three classes, softmax": model(
        of_trees(
            "class", [0, 1, 2], classlabels_int64s=[0, 1, 2], post_transform="SOFTMAX", base_values=[0.1, 0.2, 0.3]
        ),
        CLASSIFIED,
    ),
    "two classes by one score": model(
        of_trees("class", [0], classlabels_int64s=[0, 1], post_transform="LOGISTIC", base_values=[0.2]), CLASSIFIED
    ),
    "columns": model(
        helper.make_node("ArrayFeatureExtractor", ["x", "which"], ["scores"], domain="ai.onnx.ml"),
        SCORED,
        {"which": np.array([[2, 0]], np.int64)},
    ),
    "missing values": model(
        helper.make_node(
            "Imputer",
            ["x"],
            ["scores"],
            domain="ai.onnx.ml",
            imputed_value_floats=[9.0, 8.0, 7.0],
            replaced_value_float=float("nan"),
        ),
        SCORED,
    ),
    "a threshold": model(helper.make_node("Binarizer", ["x"], ["scores"], domain="ai.onnx.ml", threshold=0.75), SCORED),
}


@pytest.mark.parametrize("before", CASES.values(), ids=CASES.keys())
def test_answers_stay_what_they_were(before: onnx.ModelProto) -> None:
    rows = ROWS if before.graph.node[0].op_type == "Imputer" else np.nan_to_num(ROWS)
    session = onnxruntime.InferenceSession(before.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    expected = dict(zip(names, session.run(None, {"x": rows}), strict=True))
    after = plain_operators.plain(before)
    assert {node.domain for node in after.graph.node} == {""}
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(after.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for name, wanted in expected.items():
        np.testing.assert_allclose(compiled(rows)[name], wanted, rtol=1e-6, atol=1e-6)


def test_only_the_outputs_named_are_kept_and_what_they_need() -> None:
    after = plain_operators.plain(CASES["three classes"], ["scores"])
    assert [output.name for output in after.graph.output] == ["scores"]


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        (helper.make_node("SVMRegressor", ["x"], ["scores"], domain="ai.onnx.ml"), "SVMRegressor: no rule"),
        (
            of_trees("class", [0, 1], classlabels_strings=["a", "b"]),
            "TreeEnsembleClassifier: classes are strings",
        ),
    ],
)
def test_what_can_not_be_rewritten_is_named(node: onnx.NodeProto, sentence: str) -> None:
    outputs = dict.fromkeys(node.output, TensorProto.FLOAT)
    with pytest.raises(ValueError, match=sentence):
        plain_operators.plain(model(node, outputs))
