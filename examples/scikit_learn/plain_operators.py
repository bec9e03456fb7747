"""Rewrites exported scikit-learn models (domain ai.onnx.ml) with plain ONNX operators, which OpenVINO runs.

    python plain_operators.py exported.onnx model.onnx [OUTPUT ...]

Keeps the named outputs, or all. docs/scikit-learn.md lists the estimators that need this, and those that can't run.
Needs onnx and numpy. As a library: ``plain(model, outputs)`` returns the new model, or raises ValueError.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

DOMAIN = "ai.onnx.ml"
Attributes = Mapping[str, Any]


class Rewrite:
    """Collects the nodes and constants that replace one node."""

    def __init__(self, prefix: str, vectors: frozenset[str]) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.vectors = vectors  # names of constants with one dimension
        self._prefix = prefix

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        name = f"{self._prefix}/constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{self._prefix}/{operator}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name


def array_feature_extractor(node: NodeProto, _: Attributes, to: Rewrite) -> None:
    indices = to.add("Reshape", node.input[1], to.constant([-1], np.int64))
    if node.input[0] in to.vectors:
        picked = to.add("Gather", node.input[0], indices, axis=0)
        to.add("Reshape", picked, to.constant([1, -1], np.int64), output=node.output[0])
    else:
        to.add("Gather", node.input[0], indices, axis=-1, output=node.output[0])


def imputer(node: NodeProto, given: Attributes, to: Rewrite) -> None:
    if "imputed_value_floats" not in given or not np.isnan(given.get("replaced_value_float", 0.0)):
        raise ValueError("Imputer: only missing floats (NaN) can be replaced")
    missing = to.add("IsNaN", node.input[0])
    to.add("Where", missing, to.constant(given["imputed_value_floats"]), node.input[0], output=node.output[0])


def binarizer(node: NodeProto, given: Attributes, to: Rewrite) -> None:
    above = to.add("Greater", node.input[0], to.constant(given.get("threshold", 0.0)))
    to.add("Cast", above, output=node.output[0], to=TensorProto.FLOAT)


def tree_regressor(node: NodeProto, given: Attributes, to: Rewrite) -> None:
    targets = int(given.get("n_targets", 1))
    scores, trees = _trees(node, given, to, "target", targets)
    if given.get("aggregate_function", b"SUM") == b"AVERAGE":
        scores = to.add("Div", scores, to.constant(float(trees)))
    elif given.get("aggregate_function", b"SUM") != b"SUM":
        raise ValueError(f"{node.op_type}: aggregate_function {given['aggregate_function'].decode()}")
    _post_transform(node, given, to, _with_base(given, to, scores), node.output[0])


def tree_classifier(node: NodeProto, given: Attributes, to: Rewrite) -> None:
    if "classlabels_int64s" not in given:
        raise ValueError(f"{node.op_type}: classes are strings; train on numbers and keep the names at the client")
    labels = given["classlabels_int64s"]
    one_score = len(labels) == 2 and len(set(given["class_ids"])) == 1
    scores, _ = _trees(node, given, to, "class", 1 if one_score else len(labels))
    scores = _with_base(given, to, scores)
    transform = given.get("post_transform", b"NONE")
    if one_score:  # the score is that of the second class
        positive = to.add("Sigmoid", scores) if transform == b"LOGISTIC" else scores
        negative = to.add("Sub", to.constant(1.0), positive)
        to.add("Concat", negative, positive, axis=1, output=node.output[1])
    else:
        _post_transform(node, given, to, scores, node.output[1])
    best = to.add("ArgMax", node.output[1], axis=1, keepdims=0)
    to.add("Gather", to.constant(labels, np.int64), best, axis=0, output=node.output[0])


def _trees(node: NodeProto, given: Attributes, to: Rewrite, kind: str, columns: int) -> tuple[str, int]:
    """The sum of all trees' outputs, [rows, columns], and the number of trees.

    Each tree is two small matrices: which splits lie above a leaf and on which side, and what the leaf says. A row
    is in the leaf whose splits it all takes. Trees are padded to the size of the largest.
    """
    if set(given["nodes_modes"]) - {b"BRANCH_LEQ", b"LEAF"}:
        raise ValueError(f"{node.op_type}: splits other than <= (such as categories) can't be rewritten")
    names = sorted(set(given["nodes_treeids"]))
    at = {key: i for i, key in enumerate(zip(given["nodes_treeids"], given["nodes_nodeids"], strict=True))}
    children = given["nodes_truenodeids"], given["nodes_falsenodeids"]
    paths: list[dict[int, list[tuple[int, int]]]] = []  # of each tree: leaf -> its splits and sides, by node
    for tree in names:
        leaves, stack = {}, [(at[tree, 0], [])]
        while stack:
            i, path = stack.pop()
            if given["nodes_modes"][i] == b"LEAF":
                leaves[i] = path
            else:
                for side, child in zip((1, -1), children, strict=True):
                    stack.append((at[tree, child[i]], [*path, (i, side)]))
        paths.append(leaves)
    splits = [sorted({i for path in leaves.values() for i, _ in path}) for leaves in paths]
    depth, width = max(1, *map(len, splits)), max(map(len, paths))
    features: NDArray[Any] = np.zeros((len(names), depth), np.int64)
    thresholds: NDArray[Any] = np.zeros((len(names), depth), np.float32)
    sides: NDArray[Any] = np.zeros((len(names), depth, width), np.float32)
    hits: NDArray[Any] = np.full((len(names), 1, width), depth + 1, np.float32)
    values: NDArray[Any] = np.zeros((len(names), width, columns), np.float32)
    place = {}
    for t, leaves in enumerate(paths):
        column = {i: c for c, i in enumerate(splits[t])}
        for i, c in column.items():
            features[t, c], thresholds[t, c] = given["nodes_featureids"][i], given["nodes_values"][i]
        for leaf, (i, path) in enumerate(leaves.items()):
            place[i] = t, leaf
            hits[t, 0, leaf] = sum(side == 1 for _, side in path)
            for split, side in path:
                sides[t, column[split], leaf] = side
    weights = zip(*(given[f"{kind}_{part}"] for part in ("treeids", "nodeids", "ids", "weights")), strict=True)
    for tree, leaf, which, weight in weights:
        t, position = place[at[tree, leaf]]
        values[t, position, which if columns > 1 else 0] += weight
    rows = to.add("Cast", node.input[0], to=TensorProto.FLOAT)
    picked = to.add("Gather", rows, to.constant(features.ravel(), np.int64), axis=1)
    taken = to.add("LessOrEqual", picked, to.constant(thresholds.ravel()))
    taken = to.add("Reshape", to.add("Cast", taken, to=TensorProto.FLOAT), to.constant([-1, *features.shape], np.int64))
    sums = to.add("MatMul", to.add("Transpose", taken, perm=[1, 0, 2]), to.constant(sides))
    leaf = to.add("Cast", to.add("Equal", sums, to.constant(hits)), to=TensorProto.FLOAT)
    said = to.add("MatMul", leaf, to.constant(values))
    return to.add("ReduceSum", said, to.constant([0], np.int64), keepdims=0), len(names)


def _with_base(given: Attributes, to: Rewrite, scores: str) -> str:
    return to.add("Add", scores, to.constant(given["base_values"])) if "base_values" in given else scores


def _post_transform(node: NodeProto, given: Attributes, to: Rewrite, scores: str, output: str) -> None:
    operators = {b"NONE": "Identity", b"LOGISTIC": "Sigmoid", b"SOFTMAX": "Softmax"}
    transform = given.get("post_transform", b"NONE")
    if transform not in operators:
        raise ValueError(f"{node.op_type}: post_transform {transform.decode()}")
    to.add(operators[transform], scores, output=output)


RULES: dict[str, Callable[[NodeProto, Attributes, Rewrite], None]] = {
    "ArrayFeatureExtractor": array_feature_extractor,
    "Binarizer": binarizer,
    "Imputer": imputer,
    "TreeEnsembleClassifier": tree_classifier,
    "TreeEnsembleRegressor": tree_regressor,
}


def _needed(model: onnx.ModelProto, outputs: Sequence[str]) -> list[NodeProto]:
    wanted, nodes = set(outputs), []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            nodes.append(node)
            wanted |= set(node.input)
    return nodes[::-1]


def plain(model: onnx.ModelProto, outputs: Sequence[str] = ()) -> onnx.ModelProto:
    """``model`` without ai.onnx.ml; with ``outputs`` alone if any are named."""
    kept = list(outputs) or [value.name for value in model.graph.output]
    if unknown := set(kept) - {value.name for value in model.graph.output}:
        raise ValueError(f"no output is called {', '.join(sorted(unknown))}")
    vectors = frozenset(tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 1)
    nodes: list[NodeProto] = []
    constants = list(model.graph.initializer)
    for i, node in enumerate(_needed(model, kept)):
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        if node.op_type not in RULES:
            raise ValueError(f"{node.op_type}: no rule; see docs/scikit-learn.md")
        to = Rewrite(f"{node.op_type}{i}", vectors)
        RULES[node.op_type](node, {a.name: helper.get_attribute_value(a) for a in node.attribute}, to)
        nodes += to.nodes
        constants += to.constants
    shown = [value for value in model.graph.output if value.name in kept]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, model.graph.name, model.graph.input, shown, [c for c in constants if c.name in used]
    )
    opsets = [opset for opset in model.opset_import if opset.domain != DOMAIN]
    return helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    onnx.save(plain(onnx.load(sys.argv[1]), sys.argv[3:]), sys.argv[2])
