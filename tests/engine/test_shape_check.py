"""Which shapes are refused before a run, and what the check costs."""

from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest

from inferd.config.model import parse
from inferd.engine.model import _signature
from inferd.engine.runtime import ov
from inferd.engine.shape_check import ShapeCheck, shape_check, skeleton
from inferd.errors import InvalidRequest
from inferd.tensors import DType, Tensor
from tests.engine import models
from tests.engine.models import op, parameter
from tests.system.failing_models import KINDS, Inputs, Kind


def tensors(inputs: Inputs) -> list[Tensor]:
    return [Tensor(DType.FP32, x.shape, b"") for x in inputs.values()]


def check_of(network: ov.Model) -> ShapeCheck:
    made = shape_check(network, _signature(network, parse("", "m")))
    assert made is not None
    return made


def kinds(*, by_shape: bool) -> Iterator[object]:
    for name, kind in KINDS.items():
        if kind().by_shape == by_shape and name != "picked_fixed_rows":
            yield pytest.param(kind(), id=name)


@pytest.mark.parametrize("kind", list(kinds(by_shape=True)))
def test_shapes_that_can_not_go_through_are_refused_and_others_are_not(kind: Kind) -> None:
    check = check_of(kind.network)
    for _ in range(2):
        for bad in kind.bad:
            with pytest.raises(InvalidRequest, match=r"^model 'm': inputs of shapes ") as refused:
                check.check("m", tensors(bad))
            said = str(refused.value)
            assert all(f"'{name}' {list(x.shape)}" in said for name, x in bad.items())
            assert "don't fit the model: " in said
            assert "src/" not in said
            assert ".hpp" not in said
        for good in kind.good:
            check.check("m", tensors(good))


@pytest.mark.parametrize("kind", list(kinds(by_shape=False)))
def test_what_only_the_data_or_the_device_tell_is_not_seen(kind: Kind) -> None:
    check = check_of(kind.network)
    for inputs in (*kind.good, *kind.bad):
        check.check("m", tensors(inputs))


@pytest.mark.parametrize("network", [models.identity(), KINDS["picked_fixed_rows"]().network], ids=["none", "inside"])
def test_a_model_of_fixed_inputs_needs_no_check(network: ov.Model) -> None:
    assert shape_check(network, _signature(network, parse("", "m"))) is None


def test_a_body_that_may_not_be_entered_is_no_reason_to_refuse() -> None:
    which, x = parameter([], ov.Type.boolean, "which"), parameter([-1])
    taken, other = parameter([-1]), parameter([-1])
    branch = op.if_op(which)
    branch.set_then_body(ov.Model([op.result(op.reshape(taken, op.constant([2, 2]), False))], [taken]))
    branch.set_else_body(ov.Model([op.result(op.relu(other))], [other]))
    branch.set_input(x.output(0), taken, other)
    y = branch.set_output(branch.get_then_body().results[0], branch.get_else_body().results[0])
    network = ov.Model([op.result(y)], [which, x], "branches")
    assert shape_check(network, _signature(network, parse("", "m"))) is None


def test_the_copy_keeps_no_weights() -> None:
    x = parameter([-1, 512])
    weights = op.constant(np.zeros((512, 512), np.float32))
    network = models.model({"y": op.matmul(x, weights, False, False)}, [x])
    copy, ports = skeleton(network)
    copy.reshape({ports[0]: ov.PartialShape([3, 512])})
    assert copy.outputs[0].partial_shape == ov.PartialShape([3, 512])
    sizes = [node.get_byte_size() for node in copy.get_ops() if node.get_type_name() == "Constant"]
    assert max(sizes, default=0) <= 1024


def test_looks_take_a_tenth_of_the_time_and_known_shapes_none() -> None:
    network = KINDS["short_signals"]().network
    looks, now = count(), [0.0]
    # Each look takes 10 ms, and no time passes but by itself.
    check = ShapeCheck(
        network, _signature(network, parse("", "m")), clock=lambda: now[0], busy=lambda: next(looks) * 0.01
    )
    refused = [refuses(check, n) for n in (1, 2, 3) * 2]
    assert refused == [True] * 6
    # What can't be afforded may run.
    assert [refuses_any(check, n) for n in range(100)].count(True) < 20
    now[0] += 1.0
    assert refuses(check, 3)


def refuses(check: ShapeCheck, length: int) -> bool:
    try:
        check.check("m", [Tensor(DType.FP32, (1, 2, length), b"")])
    except InvalidRequest:
        return True
    return False


def refuses_any(check: ShapeCheck, other: int) -> bool:
    """Whether a shape not seen before, with channels that the model has not, is refused."""
    try:
        check.check("m", [Tensor(DType.FP32, (1, 3 + other, 1), b"")])
    except InvalidRequest:
        return True
    return False


def test_where_looks_take_long_only_what_has_failed_is_looked_at() -> None:
    network = KINDS["short_signals"]().network
    looks = count()
    check = ShapeCheck(network, _signature(network, parse("", "m")), clock=lambda: 0.0, busy=lambda: next(looks) * 1.0)
    assert check.slow
    assert not refuses(check, 1)
    check.learn([Tensor(DType.FP32, (1, 2, 1), b"")])
    assert refuses(check, 1)
    assert not refuses(check, 2)
