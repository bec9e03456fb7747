"""ReduceLogSumExp of an ONNX file is right or refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from inferd.engine.onnx_reductions import misread
from inferd.engine.runtime import ov
from inferd.errors import LoadFailed
from tests.engine import models

REFUSED = r"ReduceLogSumExp 'lse' of ONNX opset 13 has axes"


def reduction(**attributes: Any) -> onnx.NodeProto:
    return helper.make_node("ReduceLogSumExp", ["x"], ["y"], "lse", **attributes)


def saved(file: Path, nodes: list[onnx.NodeProto], opset: int, inputs: Mapping[str, int], **parts: Any) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, [3, 2] if name == "x" else []) for name, kind in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("own", 14)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8, **parts), file)
    return file


def in_branch(inner: onnx.NodeProto) -> onnx.NodeProto:
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    branch = helper.make_graph([inner], "branch", [], [y])
    other = helper.make_graph([helper.make_node("Exp", ["x"], ["y"])], "other", [], [y])
    return helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other)


@pytest.mark.parametrize("opset", range(11, 20))
def test_axes_are_refused_of_the_opsets_where_openvino_does_not_regard_them(opset: int, tmp_path: Path) -> None:
    attributes = {"axes": [1]} if opset < 18 else {}
    file = saved(tmp_path / "model.onnx", [reduction(**attributes)], opset, {"x": TensorProto.FLOAT})
    problem = misread(ov.Core().read_model(file), file)
    assert problem.startswith(f"ReduceLogSumExp 'lse' of ONNX opset {opset} has axes") == (13 <= opset < 18)
    assert ("export it with opset 18 or newer" in problem) == (13 <= opset < 18)


def test_such_a_file_is_not_loaded(tmp_path: Path) -> None:
    file = saved(tmp_path / "model.onnx", [reduction(axes=[1])], 13, {"x": TensorProto.FLOAT})
    with pytest.raises(LoadFailed, match=REFUSED):
        models.engine().load(models.source(file))


def test_over_all_axes_it_is_right(tmp_path: Path) -> None:
    file = saved(tmp_path / "model.onnx", [reduction(keepdims=0)], 13, {"x": TensorProto.FLOAT})
    network = ov.Core().read_model(file)
    assert misread(network, file) == ""
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert ov.Core().compile_model(network, "CPU")(rows)[0] == pytest.approx(np.log(np.exp(rows).sum()))


def test_it_is_found_in_a_branch(tmp_path: Path) -> None:
    inputs = {"x": TensorProto.FLOAT, "c": TensorProto.BOOL}
    file = saved(tmp_path / "model.onnx", [in_branch(reduction(axes=[1]))], 13, inputs)
    with pytest.raises(LoadFailed, match=REFUSED):
        models.engine().load(models.source(file))


def test_it_is_found_in_a_function(tmp_path: Path) -> None:
    function = helper.make_function("own", "Score", ["x"], ["y"], [reduction(axes=[1])], [helper.make_opsetid("", 13)])
    call = helper.make_node("Score", ["x"], ["y"], domain="own")
    file = saved(tmp_path / "model.onnx", [call], 18, {"x": TensorProto.FLOAT}, functions=[function])
    network = ov.Core().read_model(saved(tmp_path / "plain.onnx", [reduction()], 13, {"x": TensorProto.FLOAT}))
    assert misread(network, file).startswith("ReduceLogSumExp 'lse' of ONNX opset 13 has axes")


def test_other_operations_of_that_name_are_not_meant(tmp_path: Path) -> None:
    file = saved(
        tmp_path / "model.onnx",
        [helper.make_node("ReduceLogSumExp", ["x"], ["y"], domain="own", axes=[1])],
        13,
        {"x": TensorProto.FLOAT},
    )
    network = ov.Core().read_model(saved(tmp_path / "plain.onnx", [reduction()], 13, {"x": TensorProto.FLOAT}))
    assert misread(network, file) == ""


def test_a_file_that_can_not_be_read_is_told(tmp_path: Path) -> None:
    network = ov.Core().read_model(saved(tmp_path / "plain.onnx", [reduction()], 13, {"x": TensorProto.FLOAT}))
    (tmp_path / "model.onnx").write_bytes(b"\x3a\xff")
    with pytest.raises(RuntimeError, match="its operations can't be read"):
        misread(network, tmp_path / "model.onnx")
