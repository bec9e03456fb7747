"""Models in which something has nothing to work on: a loop makes no turn, nothing is found, what comes in is empty.

OpenVINO's CPU plugin leaves what such an operation should give as it was: another request's numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from inferd.engine.runtime import ov

op = ov.opset15

Feed = Mapping[str, npt.NDArray[Any]]
F32, I64, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL
_node, _info = helper.make_node, helper.make_tensor_value_info


def numbers(*values: float) -> npt.NDArray[np.float32]:
    """FP32 of one dimension."""
    return np.array(values, np.float32)


def whole(*values: int) -> npt.NDArray[np.int64]:
    """INT64 of one dimension."""
    return np.array(values, np.int64)


def filled(*shape: int, value: float = 1000) -> npt.NDArray[np.float32]:
    """FP32 of ``shape``, all ``value``."""
    return np.full(shape, value, np.float32)


def scalar(value: Any, dtype: Any = np.int64) -> npt.NDArray[Any]:
    return np.array(value, dtype)


# -- ONNX -----------------------------------------------------------------------------


def _onnx(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], **constants: Any
) -> Callable[[Path], Path]:
    kept = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def write(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(model, folder / "model.onnx")
        return folder / "model.onnx"

    return write


def _turn(size: Any) -> Any:
    """Adds ``x`` to what is carried and collects it."""
    return helper.make_graph(
        [_node("Identity", ["go"], ["on"]), _node("Add", ["s", "x"], ["t"]), _node("Identity", ["t"], ["each"])],
        "turn",
        [_info("i", I64, []), _info("go", BOOL, []), _info("s", F32, [size])],
        [_info("on", BOOL, []), _info("t", F32, [size]), _info("each", F32, [size])],
    )


def loop(size: Any = 2) -> Callable[[Path], Path]:
    """``turns`` INT64 [], ``x`` FP32 [size] -> ``last``: x(turns + 1), ``all``: what it was after each turn."""
    return _onnx(
        [_node("Loop", ["turns", "yes", "x"], ["last", "all"], body=_turn(size))],
        [_info("turns", I64, []), _info("x", F32, [size])],
        [_info("last", F32, [size]), _info("all", F32, ["t", size])],
        yes=np.bool_(True),
    )


def repeated() -> Callable[[Path], Path]:
    body = helper.make_graph(
        [
            _node("Add", ["s", "x"], ["t"]),
            _node("ReduceMax", ["t"], ["most"], keepdims=0),
            _node("Less", ["most", "below"], ["on"]),
            _node("Identity", ["t"], ["each"]),
        ],
        "body",
        [_info("i", I64, []), _info("go", BOOL, []), _info("s", F32, [2])],
        [_info("on", BOOL, []), _info("t", F32, [2]), _info("each", F32, [2])],
    )
    return _onnx(
        [_node("Loop", ["", "begin", "x"], ["last", "all"], body=body)],
        [_info("begin", BOOL, []), _info("below", F32, []), _info("x", F32, [2])],
        [_info("last", F32, [2]), _info("all", F32, ["t", 2])],
    )


def loop_in_branch() -> Callable[[Path], Path]:
    looping = helper.make_graph(
        [_node("Loop", ["turns", "yes", "x"], ["end", "each"], body=_turn(2))], "e", [], [_info("each", F32, ["t", 2])]
    )
    single = helper.make_graph([_node("Unsqueeze", ["x", "first"], ["a"])], "t", [], [_info("a", F32, [1, 2])])
    return _onnx(
        [_node("If", ["single"], ["y"], then_branch=single, else_branch=looping)],
        [_info("single", BOOL, []), _info("turns", I64, []), _info("x", F32, [2])],
        [_info("y", F32, ["t", 2])],
        yes=np.bool_(True),
        first=whole(0),
    )


def loop_in_loop() -> Callable[[Path], Path]:
    body = helper.make_graph(
        [
            _node("Identity", ["go0"], ["on0"]),
            _node("Loop", ["inner", "yes", "s0"], ["t0", "all0"], body=_turn(2)),
            _node("ReduceSum", ["all0"], ["each0"], keepdims=0),
        ],
        "outer",
        [_info("i0", I64, []), _info("go0", BOOL, []), _info("s0", F32, [2])],
        [_info("on0", BOOL, []), _info("t0", F32, [2]), _info("each0", F32, [])],
    )
    return _onnx(
        [_node("Loop", ["outer", "yes", "x"], ["last", "all"], body=body)],
        [_info("outer", I64, []), _info("inner", I64, []), _info("x", F32, [2])],
        [_info("last", F32, [2]), _info("all", F32, ["t"])],
        yes=np.bool_(True),
    )


def empty_branch() -> Callable[[Path], Path]:
    some = helper.make_graph([_node("Mul", ["x", "x"], ["a"])], "t", [], [_info("a", F32, ["k"])])
    none = helper.make_graph([_node("Slice", ["x", "zero", "zero"], ["b"])], "e", [], [_info("b", F32, ["n"])])
    return _onnx(
        [_node("If", ["some"], ["y"], then_branch=some, else_branch=none)],
        [_info("some", BOOL, []), _info("x", F32, ["k"])],
        [_info("y", F32, ["m"])],
        zero=whole(0),
    )


def scan() -> Callable[[Path], Path]:
    body = helper.make_graph(
        [_node("Add", ["s", "xi"], ["t"]), _node("Identity", ["t"], ["each"])],
        "body",
        [_info("s", F32, [2]), _info("xi", F32, [2])],
        [_info("t", F32, [2]), _info("each", F32, [2])],
    )
    return _onnx(
        [_node("Scan", ["s0", "xs"], ["last", "all"], body=body, num_scan_inputs=1)],
        [_info("s0", F32, [2]), _info("xs", F32, ["t", 2])],
        [_info("last", F32, [2]), _info("all", F32, ["t", 2])],
    )


def chosen_in_order() -> Callable[[Path], Path]:
    return _onnx(
        [
            _node("NonZero", ["x"], ["places"]),
            _node("Squeeze", ["places", "first"], ["place"]),
            _node("Gather", ["x", "place"], ["chosen"]),
            _node("Shape", ["chosen"], ["count"]),
            _node("TopK", ["chosen", "count"], ["values", "order"]),
            _node("Gather", ["chosen", "order"], ["y"]),
        ],
        [_info("x", F32, ["n"])],
        [_info("y", F32, ["m"])],
        first=whole(0),
    )


def sequences() -> Callable[[Path], Path]:
    body = helper.make_graph(
        [_node("Identity", ["go"], ["on"]), _node("SequenceInsert", ["si", "x"], ["so"])],
        "b",
        [_info("i", I64, []), _info("go", BOOL, []), helper.make_tensor_sequence_value_info("si", F32, None)],
        [_info("on", BOOL, []), helper.make_tensor_sequence_value_info("so", F32, None)],
    )
    return _onnx(
        [
            _node("SequenceEmpty", [], ["s0"], dtype=F32),
            _node("Loop", ["turns", "yes", "s0"], ["s"], body=body),
            _node("ConcatFromSequence", ["s"], ["y"], axis=0, new_axis=1),
        ],
        [_info("turns", I64, []), _info("x", F32, [2])],
        [_info("y", F32, ["t", 2])],
        yes=np.bool_(True),
    )


def empty_onnx_constant() -> Callable[[Path], Path]:
    """``some`` BOOL [], ``x`` FP32 [k] -> ``y``: x squared or an empty constant; ``b``, ``c``: other empty ones."""
    some = helper.make_graph([_node("Mul", ["x", "x"], ["a"])], "t", [], [_info("a", F32, ["k"])])
    value = numpy_helper.from_array(numbers())
    none = helper.make_graph([_node("Constant", [], ["d"], value=value)], "e", [], [_info("d", F32, [0])])
    return _onnx(
        [
            _node("If", ["some"], ["y"], then_branch=some, else_branch=none),
            _node("Identity", ["of_two"], ["b"]),
            _node("Unsqueeze", ["of_two", "first"], ["c"]),
        ],
        [_info("some", BOOL, []), _info("x", F32, ["k"])],
        [_info("y", F32, ["m"]), _info("b", F32, [0, 2]), _info("c", F32, [1, 0, 2])],
        of_two=filled(0, 2),
        first=whole(0),
    )


def edges() -> Callable[[Path], Path]:
    """``x`` FP32 [n,4], ``src`` INT64 [e] -> ``n`` INT64 [2]: the shape of the rows of x that src picks."""
    return _onnx(
        [_node("Gather", ["x", "src"], ["r"], axis=0), _node("Shape", ["r"], ["n"])],
        [_info("x", F32, ["N", 4]), _info("src", I64, ["E"])],
        [_info("n", I64, [2])],
    )


# -- OpenVINO's own -------------------------------------------------------------------


def ir(build: Callable[[], tuple[Mapping[str, Any], Sequence[Any]]]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        outputs, inputs = build()
        results = []
        for name, node in outputs.items():
            result = op.result(node)
            result.output(0).set_names({name})
            results.append(result)
        folder.mkdir(parents=True, exist_ok=True)
        ov.save_model(ov.Model(results, list(inputs), "empty"), folder / "model.xml", compress_to_fp16=False)
        return folder / "model.xml"

    return write


def _input(name: str, shape: Sequence[int], dtype: Any = ov.Type.f32) -> Any:
    node = op.parameter(ov.PartialShape(list(shape)), dtype)
    node.output(0).set_names({name})
    return node


def const(value: Any, dtype: Any = np.int64) -> Any:
    return op.constant(np.array(value, dtype))


def _chosen(x: Any) -> Any:
    """The elements of ``x`` that are not 0."""
    return op.gather(x, op.squeeze(op.non_zero(x), const([0])), const(0))


def of_chosen(make: Callable[[Any], Mapping[str, Any]]) -> Callable[[Path], Path]:
    """``x`` FP32 [n] -> what ``make`` makes of the elements that are not 0."""

    def build() -> tuple[Mapping[str, Any], Sequence[Any]]:
        x = _input("x", [-1])
        return make(_chosen(x)), [x]

    return ir(build)


def layer_of(kind: str) -> Callable[[Any], Mapping[str, Any]]:
    """A layer over what it is given as steps, from a state of 7s (and 8s)."""
    gates = {"gru": 3, "lstm": 4, "rnn": 1}[kind]

    def make(chosen: Any) -> Mapping[str, Any]:
        steps = op.reshape(chosen, const([1, -1, 1]), False)
        weights = [const(np.full((1, gates * 2, n), 0.1), np.float32) for n in (1, 2)]
        initial = [const(np.full((1, 1, 2), 7 + i), np.float32) for i in range(2 if kind == "lstm" else 1)]
        length = op.gather(op.shape_of(steps), const([1]), const(0))
        layer = getattr(op, f"{kind}_sequence")
        done = layer(steps, *initial, length, *weights, const(np.zeros((1, gates * 2)), np.float32), 2, "forward")
        return {f"y{i}": output for i, output in enumerate(done.outputs())}

    return make


def recurrent(kind: str) -> Callable[[Path], Path]:
    """``x`` FP32 [b,t,1], ``h`` [b,1,2] (and ``c``) -> ``y0``, ``y1`` (and ``y2``) of a layer over all steps."""
    gates = {"gru": 3, "lstm": 4, "rnn": 1}[kind]

    def build() -> tuple[Mapping[str, Any], Sequence[Any]]:
        x = _input("x", [-1, -1, 1])
        initial = [_input(name, [-1, 1, 2]) for name in ("hc" if kind == "lstm" else "h")]
        weights = [const(np.full((1, gates * 2, n), 0.1), np.float32) for n in (1, 2)]
        shape = op.shape_of(x)
        lengths = op.broadcast(op.gather(shape, const(1), const(0)), op.gather(shape, const([0]), const(0)))
        layer = getattr(op, f"{kind}_sequence")
        done = layer(x, *initial, lengths, *weights, const(np.zeros((1, gates * 2)), np.float32), 2, "forward")
        return {f"y{i}": output for i, output in enumerate(done.outputs())}, [x, *initial]

    return ir(build)


def best() -> tuple[Mapping[str, Any], Sequence[Any]]:
    x, k = _input("x", [-1]), _input("k", [], ov.Type.i64)
    best = op.topk(x, k, 0, "max", "value")
    return {"values": best.output(0), "places": best.output(1)}, [x, k]


def found() -> tuple[Mapping[str, Any], Sequence[Any]]:
    boxes, scores = _input("boxes", [1, -1, 4]), _input("scores", [1, 1, -1])
    half = const(0.5, np.float32)
    found = op.non_max_suppression(boxes, scores, const(10), half, half, output_type="i64")
    rows = op.squeeze(op.gather(found.output(0), const([2]), const(1)), const([1]))
    return {"kept": op.gather(op.squeeze(boxes, const([0])), rows, const(0)), "count": found.output(2)}, [boxes, scores]


def convolved() -> tuple[Mapping[str, Any], Sequence[Any]]:
    x = _input("x", [1, 1, -1])
    sums = op.convolution(x, const(np.ones((1, 1, 3)), np.float32), [1], [2], [2], [1])
    return {"y": sums}, [x]


def pooled() -> tuple[Mapping[str, Any], Sequence[Any]]:
    x = _input("x", [1, 1, -1])
    return {"y": op.adaptive_avg_pool(op.unsqueeze(x, const(2)), const([1, 2]))}, [x]


def none_picked() -> tuple[Mapping[str, Any], Sequence[Any]]:
    x = _input("x", [2, 4])
    picked = op.gather(x, const(np.zeros(0)), const(0))
    return {"y": op.concat([picked, x], 0), "none": picked}, [x]


def empty_constant() -> tuple[Mapping[str, Any], Sequence[Any]]:
    some, x = _input("some", [], ov.Type.boolean), _input("x", [2, 2])
    inner = op.parameter(ov.PartialShape([2, 2]), ov.Type.f32)
    branching = op.if_op(some.output(0))
    then = ov.Model([op.multiply(inner, inner)], [inner], "then")
    otherwise = ov.Model([const(np.zeros((0, 2)), np.float32)], [], "otherwise")
    branching.set_then_body(then)
    branching.set_else_body(otherwise)
    branching.set_input(x.output(0), inner, None)
    return {"y": branching.set_output(then.results[0], otherwise.results[0])}, [some, x]


def resized_rows() -> tuple[Mapping[str, Any], Sequence[Any]]:
    x, y = _input("x", [-1]), _input("y", [1, -1])
    pixels = op.multiply(op.unsqueeze(_chosen(x), const([1])), y)
    sized = op.interpolate(op.unsqueeze(pixels, const([0, 1])), const([2, 2]), "nearest", "sizes", axes=const([2, 3]))
    return {"y": sized}, [x, y]


def first() -> tuple[Mapping[str, Any], Sequence[Any]]:
    x = _input("x", [-1, 2])
    return {"y": op.gather(x, const(0), const(0))}, [x]


def without_first() -> tuple[Mapping[str, Any], Sequence[Any]]:
    x = _input("x", [-1])
    rest = op.slice(x, const([1]), const([2**31 - 1]), const([1]), const([0]))
    return {"rest": rest, "first": op.gather(rest, const(0), const(0))}, [x]


def fixed() -> tuple[Mapping[str, Any], Sequence[Any]]:
    x, y = _input("x", [0, 4]), _input("y", [2, 4])
    return {"both": op.concat([x, y], 0), "sums": op.reduce_sum(x, const([0]))}, [x, y]


def uncarried(folder: Path) -> Path:
    """Writes ``turns`` INT64 [], ``x`` FP32 [2] -> ``y``, which is 2x after any turn and undefined after none."""

    def build() -> tuple[Mapping[str, Any], Sequence[Any]]:
        turns, x = _input("turns", [], ov.Type.i64), _input("x", [2])
        inner = op.parameter(ov.PartialShape([2]), ov.Type.f32)
        body = ov.Model([op.add(inner, inner).output(0), const(True, bool).output(0)], [inner], "body")
        loop = op.loop(turns, const(True, bool))
        loop.set_function(body)
        loop.set_special_body_ports([-1, 1])
        loop.set_invariant_input(inner, x.output(0))
        loop.set_friendly_name("uncarried")
        return {"y": loop.get_iter_value(body.output(0), -1)}, [turns, x]

    return ir(build)(folder)


def stateful_loop(folder: Path) -> Path:
    """Writes ``turns`` INT64 [], ``x`` FP32 [2] -> ``all`` FP32 [t,2]: a state of the model's own, which begins with 0,
    and has x added to it each turn, after each of them."""
    turns, x = _input("turns", [], ov.Type.i64), _input("x", [2])
    state = op.read_value(const([0, 0], np.float32), "total", np.float32, [2])
    before, added = op.parameter(ov.PartialShape([2]), ov.Type.f32), op.parameter(ov.PartialShape([2]), ov.Type.f32)
    after = op.add(before, added)
    body = ov.Model(
        [after.output(0), const(True, bool).output(0), op.unsqueeze(after, const(0)).output(0)], [before, added], "body"
    )
    loop = op.loop(turns, const(True, bool))
    loop.set_function(body)
    loop.set_special_body_ports([-1, 1])
    loop.set_merged_input(before, state.output(0), body.output(0))
    loop.set_invariant_input(added, x.output(0))
    last = op.add(loop.get_iter_value(body.output(0), -1), const(0, np.float32))
    result = op.result(loop.get_concatenated_slices(body.output(2), 0, 1, 1, -1, 0))
    result.output(0).set_names({"all"})
    folder.mkdir(parents=True, exist_ok=True)
    model = ov.Model([result], [op.assign(last, "total")], [turns, x], "stateful_loop")
    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"
