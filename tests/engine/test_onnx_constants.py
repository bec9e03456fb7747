"""Which constants of an ONNX file are empty, by its bytes alone."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from inferd.engine.onnx_constants import empty_constants
from tests import empty_models

_SHAPES = st.lists(st.integers(0, 200), max_size=4).map(tuple)


def _saved(file: Path, graph: onnx.GraphProto) -> Path:
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    return file


def _tensor(name: str, shape: tuple[int, ...]) -> onnx.TensorProto:
    """Without the numbers that it would have: they are not looked at."""
    return onnx.TensorProto(name=name, dims=shape, data_type=onnx.TensorProto.FLOAT)


@given(st.dictionaries(st.text("abcdef", min_size=1), _SHAPES), st.dictionaries(st.text("ghijk", min_size=1), _SHAPES))
def test_they_are_found_among_initializers_and_nodes(
    tmp_path_factory: pytest.TempPathFactory,
    initializers: dict[str, tuple[int, ...]],
    nodes: dict[str, tuple[int, ...]],
) -> None:
    graph = onnx.GraphProto(name="g")
    graph.initializer.extend(_tensor(name, shape) for name, shape in initializers.items())
    for name, shape in nodes.items():
        graph.node.append(helper.make_node("Constant", [], [name], value=_tensor("", shape)))
    file = _saved(tmp_path_factory.mktemp("onnx") / "model.onnx", graph)
    everything = initializers | nodes
    assert empty_constants(file) == {name: shape for name, shape in everything.items() if 0 in shape}


def test_they_are_found_in_the_graphs_inside(tmp_path: Path) -> None:
    assert empty_constants(empty_models.empty_onnx_constant()(tmp_path)) == {"of_two": (0, 2), "d": (0,)}


def test_a_name_that_two_constants_have_is_left_out(tmp_path: Path) -> None:
    inner = onnx.GraphProto(name="inner", initializer=[numpy_helper.from_array(np.zeros(0, np.float32), "a")])
    graph = onnx.GraphProto(name="g", initializer=[numpy_helper.from_array(np.float32(0), "a")])
    graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))
    assert empty_constants(_saved(tmp_path / "model.onnx", graph)) == {}


@pytest.mark.parametrize("content", [b"\x3a\xff", b"\x3a\x05ab", b"\x3b\x00", b"\xff" * 20], ids=repr)
def test_what_is_no_onnx_file_is_told(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises((ValueError, IndexError)):
        empty_constants(file)
