"""Constants behind a reduction of three dimensions: the answer is that of the reference implementation."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferd.engine.fused_reductions import misread, repair
from inferd.engine.runtime import ov
from inferd.errors import LoadFailed
from inferd.tensors import DType, Tensor
from tests.engine import models
from tests.engine.models import op, parameter

ROWS, CHANNELS, WIDTH = 5, 3, 4
DATA = np.random.default_rng(1).uniform(0.5, 1.5, (ROWS, CHANNELS, WIDTH)).astype(np.float32)
SHAPES = {"static": (ROWS, CHANNELS, WIDTH), "batch": (-1, CHANNELS, WIDTH), "dynamic": (-1, -1, -1)}


def numbers(*values: int) -> Any:
    return op.constant(np.array(values, np.int64))


def scalar(value: float) -> Any:
    return op.constant(np.float32(value))


def quantized(x: Any, c: Any) -> Any:
    low = op.constant(-c.get_data())
    return op.fake_quantize(x, low, c, low, c, 16)


REDUCTIONS: Mapping[str, Callable[..., Any]] = {
    "l1": op.reduce_l1,
    "l2": op.reduce_l2,
    "max": op.reduce_max,
    "mean": op.reduce_mean,
    "min": op.reduce_min,
    "prod": op.reduce_prod,
    "sum": op.reduce_sum,
}
# What is done to x with a constant c.
BEHIND: Mapping[str, Callable[[Any, Any], Any]] = {
    "add": op.add,
    "subtract": op.subtract,
    "subtract from": lambda x, c: op.subtract(c, x),
    "multiply": op.multiply,
    "divide": op.divide,
    "maximum": op.maximum,
    "prelu": lambda x, c: op.prelu(op.negative(x), c),
    "quantize": quantized,
    "relu, add": lambda x, c: op.add(op.relu(x), c),
    "scale, add": lambda x, c: op.add(op.multiply(x, scalar(2)), c),
    "add, clamp, multiply": lambda x, c: op.multiply(op.clamp(op.add(x, c), 0.0, 50.0), c),
    "add of fp16": lambda x, c: op.add(x, op.convert(op.constant(c.get_data().astype(np.float16)), "f32")),
    "add of a sum": lambda x, c: op.add(x, op.add(c, scalar(1))),
}
HIDDEN: Mapping[str, Callable[[Any], Any]] = {
    "average pool": lambda x: op.adaptive_avg_pool(x, numbers(1)),
    "maximum pool": lambda x: op.adaptive_max_pool(x, numbers(1), "i32").output(0),
    "mean of squares": lambda x: op.sqrt(op.reduce_mean(op.multiply(x, x), numbers(-1), keep_dims=True)),
    "dimension put back": lambda x: op.unsqueeze(op.reduce_sum(x, numbers(2), keep_dims=False), numbers(2)),
    "dimension put back by a shape": lambda x: op.reshape(
        op.reduce_sum(x, numbers(2), keep_dims=False), numbers(0, 0, 1), True
    ),
    "two in turn": lambda x: op.reduce_sum(
        op.reduce_sum(op.unsqueeze(x, numbers(3)), numbers(3), keep_dims=False), numbers(2), keep_dims=True
    ),
}

# The reference implementation knows no adaptive pools.
PLAIN = HIDDEN | {
    "average pool": lambda x: op.reduce_mean(x, numbers(2), keep_dims=True),
    "maximum pool": lambda x: op.reduce_max(x, numbers(2), keep_dims=True),
}


def behind_each(reductions: Mapping[str, Callable[[Any], Any]], shape: Any, constant: Any) -> ov.Model:
    """Each reduction with each of what may stand behind, on numbers of its own: only what has one taker is fused."""
    x = parameter(shape)
    outputs = {}
    for reduction, reduce in reductions.items():
        for behind, make in BEHIND.items():
            given = op.multiply(x, scalar(1 + len(outputs) / 1024))
            outputs[f"{reduction}; {behind}"] = make(reduce(given), op.constant(constant))
    return models.model(outputs, [x])


def right(network: ov.Model) -> dict[str, Any]:
    """What the reference implementation makes of DATA."""
    network = network.clone()
    network.reshape(list(DATA.shape))
    answers = [ov.Tensor(port.element_type, port.shape) for port in network.outputs]
    assert network.evaluate(answers, [ov.Tensor(DATA)])
    return {port.any_name: np.array(a.data) for port, a in zip(network.outputs, answers, strict=True)}


def served(network: ov.Model, folder: Path) -> dict[str, Any]:
    loaded = models.engine().load(models.source(models.save(network, folder)))
    try:
        pool, signature = loaded.pools[0].pool, loaded.signature
        pool.start(0, [[Tensor(DType.FP32, DATA.shape, DATA.tobytes())]])
        while not (ended := pool.sweep()):
            pass
        assert [c.failure for c in ended] == [None]
        read = pool.read(0, range(len(signature.outputs)))
        return {spec.name: models.numbers(t) for spec, t in zip(signature.outputs, read, strict=True)}
    finally:
        loaded.close()


def wrong(seen: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Which of the outputs are not as wanted."""
    assert seen.keys() == wanted.keys()
    return [
        name
        for name, want in wanted.items()
        if seen[name].shape != want.shape or not np.allclose(seen[name], want, rtol=1e-4, atol=1e-4)
    ]


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "gone"])
@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_constants_behind_a_reduction_are_read_right(shape: str, axis: int, keep: bool, tmp_path: Path) -> None:
    reductions = {
        name: (lambda x, make=make: make(x, numbers(axis), keep_dims=keep)) for name, make in REDUCTIONS.items()
    }
    along = {(0, True): (1, -1, 1), (2, True): (1, -1, 1), (0, False): (-1, 1), (2, False): (1, -1)}[axis, keep]
    constant = np.array([11, 23, 37], np.float32).reshape(along)
    network = behind_each(reductions, SHAPES[shape], constant)
    wanted = right(network)
    assert wrong(served(network, tmp_path), wanted) == []


@pytest.mark.parametrize("shape", SHAPES)
def test_so_are_those_behind_what_becomes_one(shape: str, tmp_path: Path) -> None:
    constant = np.array([11, 23, 37], np.float32).reshape(1, 3, 1)
    wanted = right(behind_each(PLAIN, SHAPES[shape], constant))
    assert wrong(served(behind_each(HIDDEN, SHAPES[shape], constant), tmp_path), wanted) == []


def summed(shape: Any, *constant: int) -> ov.Model:
    x = parameter(shape)
    added = op.constant(np.arange(np.prod(constant), dtype=np.float32).reshape(constant))
    return models.model({"y": op.add(op.reduce_sum(x, numbers(2), keep_dims=True), added)}, [x])


@pytest.mark.parametrize(
    "network",
    [
        summed((-1, 3, 4), 1, 1, 1),
        summed((-1, 3, 4, 2), 1, 3, 1, 1),
        models.model({"y": op.reduce_sum((x := parameter((-1, 3, 4))), numbers(2), keep_dims=True)}, [x]),
        models.model({"y": op.add(op.reduce_sum((x := parameter((-1, 3, 4))), numbers(1, 2)), scalar(1))}, [x]),
        models.model({"y": op.subtract(x := parameter((-1, 3, 4)), op.reduce_mean(x, numbers(2), True))}, [x]),
    ],
    ids=["one element", "four dimensions", "nothing behind", "another axis", "no constant"],
)
def test_what_is_right_stays_as_it_was(network: ov.Model) -> None:
    before = [node.get_name() for node in network.get_ordered_ops()]
    repair(network)
    assert [node.get_name() for node in network.get_ordered_ops()] == before
    assert misread(network, ov.Core().compile_model(network, "CPU")) == ""


def test_reductions_inside_of_a_loop_are_found() -> None:
    inner = parameter((-1, 3, 4), name="inner")
    added = op.constant(np.array([10, 20, 30], np.float32).reshape(1, 3, 1))
    body = ov.Model(
        [op.constant(True).output(0), op.add(op.reduce_sum(inner, numbers(2), keep_dims=True), added).output(0)],
        [inner],
    )
    x = parameter((-1, 3, 4))
    loop = op.loop(op.constant(np.int32(1)), op.constant(True))
    loop.set_function(body)
    loop.set_special_body_ports([-1, 0])
    loop.set_invariant_input(inner, x.output(0))
    y = loop.get_iter_value(body.get_results()[1].output(0), -1)
    network = models.model({"y": y}, [x])
    repair(network)
    answer = ov.Core().compile_model(network, "CPU")(DATA)[0]
    np.testing.assert_allclose(answer, DATA.sum(2, keepdims=True) + np.array([[[10], [20], [30]]]), rtol=1e-5)


def test_what_is_still_read_wrong_is_not_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferd.engine.fused_reductions.repair", lambda _: None)
    with pytest.raises(
        LoadFailed, match=r"Add .* is fused with a Reduce, where the CPU reads its constant along the wrong axis"
    ):
        served(summed((-1, 3, 4), 1, 3, 1), tmp_path)


def product(left: Any, right: Any, behind: Callable[[Any], Any], *, weights: bool) -> ov.Model:
    x = parameter(left)
    factor = op.constant(np.ones(right, np.float32)) if weights else parameter(right, name="w")
    made = behind(op.matmul(x, factor, False, False))
    return models.model({"y": made}, [x] if weights else [x, factor])


def along(*shape: int) -> Any:
    return op.constant(np.arange(10, 10 + np.prod(shape), dtype=np.float32).reshape(shape))


@pytest.mark.parametrize(
    ("kind", "network"),
    [
        ("MatMul", product((5, 3, 4), (5, 4, 3), lambda y: quantized(y, along(1, 3, 1)), weights=False)),
        ("MatMul", product((-1, 3, 4), (-1, 4, 3), lambda y: quantized(y, along(1, 3, 1)), weights=False)),
        ("MatMul", product((2, 3, 5, 4), (2, 3, 4, 3), lambda y: quantized(y, along(1, 3, 1, 1)), weights=True)),
        ("FullyConnected", product((-1, 3, 5, 4), (4, 3), lambda y: op.add(y, along(1, 3, 1, 1)), weights=True)),
        (
            "FullyConnected",
            product((-1, 3, 5, 4), (4, 3), lambda y: op.add(op.relu(y), along(1, 3, 1, 1)), weights=True),
        ),
    ],
)
def test_a_product_that_reads_a_constant_along_the_wrong_axis_is_not_served(
    kind: str, network: ov.Model, tmp_path: Path
) -> None:
    with pytest.raises(LoadFailed, match=f"is fused with a {kind}, where the CPU reads its constant"):
        models.engine().load(models.source(models.save(network, tmp_path)))


@pytest.mark.parametrize(
    "network",
    [
        product((-1, 3, 4), (4, 3), lambda y: op.relu(op.add(y, along(3))), weights=True),
        product((-1, 3, 4), (4, 3), lambda y: op.add(y, along(1, 3, 1)), weights=True),
        product((5, 3, 4), (4, 3), lambda y: quantized(y, along(1, 3, 1)), weights=True),
        product((-1, 3, 4), (-1, 4, 3), lambda y: op.add(y, along(1, 3, 1)), weights=False),
        product((2, 3, 5, 4), (4, 3), lambda y: op.add(y, along(1, 3, 1, 1)), weights=True),
        product((-1, 3, 5, 4), (4, 3), lambda y: op.multiply(y, along(3, 1, 1)), weights=True),
    ],
)
def test_other_products_are(network: ov.Model) -> None:
    given = [
        np.full([2 if dim.is_dynamic else dim.get_length() for dim in port.partial_shape], 0.5, np.float32)
        for port in network.inputs
    ]
    compiled = ov.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert misread(network, compiled) == ""
    seen = compiled(given)[0]
    wanted = ov.Tensor(np.zeros(seen.shape, np.float32))
    assert network.evaluate([wanted], [ov.Tensor(array) for array in given])
    np.testing.assert_allclose(seen, wanted.data, rtol=1e-4)


def test_a_reduction_that_openvino_makes_one_of_three_dimensions_is_not_served(tmp_path: Path) -> None:
    x = parameter((5, 3, 4))
    reduced = op.reduce_sum(op.reshape(x, numbers(5, 3, 1, 4), False), numbers(3), keep_dims=True)
    network = models.model({"y": op.add(op.reshape(reduced, numbers(5, 3, 1), False), along(1, 3, 1))}, [x])
    with pytest.raises(LoadFailed, match="is fused with a Reduce, where the CPU reads its constant"):
        models.engine().load(models.source(models.save(network, tmp_path)))
