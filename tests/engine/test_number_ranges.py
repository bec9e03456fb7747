"""Which numbers devices hold, as the engine says and as the CPU plugin computes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferd.config.model import parse
from inferd.engine import number_ranges
from inferd.engine.model import _signature
from inferd.engine.runtime import ov
from inferd.ranges import Range
from inferd.tensors import Signature
from tests.effort import examples
from tests.engine import models
from tests.engine.models import op, parameter

Array = npt.NDArray[Any]

INT32 = "-2147483648..2147483647"
UNSIGNED = "0..2147483647"
IN_FLOAT32 = "-16777216..16777216"
FLOAT32 = "-3.4028234663852886e+38..3.4028234663852886e+38"
TYPES = {"i32": np.int32, "i64": np.int64, "u32": np.uint32, "u64": np.uint64, "f64": np.float64}

CORE = ov.Core()
N = 70
ORDER = np.random.default_rng(0).permutation(N)
EVERY_OTHER = np.arange(N) % 2 == 0


class Case(NamedTuple):
    """An operation on so many inputs of N elements, and what numpy makes of the same."""

    takes: int
    build: Callable[..., Any]
    expected: Callable[..., Any]


def told(network: "ov.Model", *targets: str, refused: bool = True) -> Signature:
    signature = _signature(network, parse("", "m"))
    return number_ranges.with_number_ranges(signature, network, targets or ["CPU"], refused=refused)


def held(network: "ov.Model", *targets: str) -> Range | None:
    return told(network, *targets).inputs[0].held


def run(network: "ov.Model", *feeds: Array) -> Array:
    request = CORE.compile_model(network, "CPU", {"EXECUTION_MODE_HINT": "ACCURACY"}).create_infer_request()
    for place, feed in enumerate(feeds):
        request.set_input_tensor(place, ov.Tensor(np.ascontiguousarray(feed)))
    request.infer()
    return np.array(request.get_output_tensor(0).data)


def constant(value: Any, of: Any = np.int64) -> Any:
    return op.constant(np.array(value, of))


def built(case: Case, element: str, size: int = N) -> "ov.Model":
    """``case`` on inputs of ``size`` elements, -1 for any."""
    inputs = [parameter([size], getattr(ov.Type, element), f"x{i}") for i in range(case.takes)]
    return models.model({"y": case.build(*inputs)}, inputs)


def of_one(build: Callable[..., Any], element: str = "i64") -> "ov.Model":
    return built(Case(1, build, build), element)


def _two_rows(x: Any) -> Any:
    return op.reshape(x, constant([2, N // 2]), False)


def _at(x: Any, place: int | list[int]) -> Any:
    return op.gather(x, constant(place), constant(0))


def _like(x: Any, value: Any) -> Any:
    """A constant of the type of ``x``."""
    return constant(value, TYPES[x.get_output_element_type(0).get_type_name()])


def _to_small(compare: Callable[..., Any], expected: Callable[..., Any]) -> Case:
    """Comparing with constants that float32 holds and nothing is rounded to."""
    known = np.resize([2**24 - 1, 0, 7], N)
    return Case(1, lambda x: compare(x, _like(x, known)), lambda x: expected(x, known))


HANDED_ON = {
    "Result": Case(1, lambda x: x, lambda x: x),
    "Identity": Case(1, ov.opset16.identity, lambda x: x),
    "Reshape": Case(1, _two_rows, lambda x: x.reshape(2, -1)),
    "Squeeze": Case(1, lambda x: op.squeeze(op.reshape(x, constant([N, 1]), False), constant([1])), lambda x: x),
    "Unsqueeze": Case(1, lambda x: op.unsqueeze(x, constant([0])), lambda x: x[None]),
    "Transpose": Case(1, lambda x: op.transpose(_two_rows(x), constant([1, 0])), lambda x: x.reshape(2, -1).T),
    "Concat": Case(2, lambda x, y: op.concat([x, y], 0), lambda x, y: np.concatenate([x, y])),
    "Split": Case(1, lambda x: op.split(x, constant(0), 2).output(1), lambda x: x[N // 2 :]),
    "VariadicSplit": Case(
        1, lambda x: op.variadic_split(x, constant(0), constant([1, N - 1])).output(1), lambda x: x[1:]
    ),
    "Slice": Case(1, lambda x: op.slice(x, constant([1]), constant([2**63 - 1]), constant([2])), lambda x: x[1::2]),
    "StridedSlice": Case(
        1,
        lambda x: op.strided_slice(x, constant([-1]), constant([-N - 1]), constant([-1]), [0], [0]),
        lambda x: x[::-1],
    ),
    "Tile": Case(1, lambda x: op.tile(x, constant([3])), lambda x: np.tile(x, 3)),
    "Broadcast": Case(1, lambda x: op.broadcast(x, constant([3, N])), lambda x: np.stack([x] * 3)),
    "Gather": Case(1, lambda x: op.gather(x, constant(ORDER), constant(0)), lambda x: x[ORDER]),
    "GatherElements": Case(1, lambda x: op.gather_elements(x, constant(ORDER), 0), lambda x: x[ORDER]),
    "GatherND": Case(1, lambda x: op.gather_nd(x, constant(ORDER[:, None])), lambda x: x[ORDER]),
    "ScatterUpdate": Case(
        2,
        lambda x, y: op.scatter_update(x, constant(ORDER), y, constant(0)),
        lambda _, y: y[np.argsort(ORDER)],
    ),
    "ScatterElementsUpdate": Case(
        2,
        lambda x, y: op.scatter_elements_update(x, constant(ORDER), y, constant(0)),
        lambda _, y: y[np.argsort(ORDER)],
    ),
    "ScatterNDUpdate": Case(
        2, lambda x, y: op.scatter_nd_update(x, constant(ORDER[:, None]), y), lambda _, y: y[np.argsort(ORDER)]
    ),
    "Select": Case(2, lambda x, y: op.select(op.constant(EVERY_OTHER), x, y), lambda x, y: np.where(EVERY_OTHER, x, y)),
    "Roll": Case(1, lambda x: op.roll(x, constant([1]), constant([0])), lambda x: np.roll(x, 1)),
}
WRAPPING = {
    "Add": Case(2, op.add, np.add),
    "Subtract": Case(2, op.subtract, np.subtract),
    "Multiply": Case(2, op.multiply, np.multiply),
    "BitwiseAnd": Case(2, op.bitwise_and, np.bitwise_and),
    "BitwiseOr": Case(2, op.bitwise_or, np.bitwise_or),
    "BitwiseXor": Case(2, op.bitwise_xor, np.bitwise_xor),
    "BitwiseNot": Case(1, op.bitwise_not, np.bitwise_not),
}
KEEPING = {
    "Convert": Case(1, lambda x: op.convert(x, "i32"), lambda x: x),
    "ShapeOf": Case(1, op.shape_of, lambda x: np.array(x.shape)),
    "NonZero": Case(1, op.non_zero, lambda x: np.array(np.nonzero(x))),
    "OneHot": Case(
        1, lambda x: op.one_hot(constant([0, 1]), constant(2), _at(x, 3), _at(x, 4), -1), lambda x: x[[[3, 4], [4, 3]]]
    ),
    "Sign": Case(1, op.sign, np.sign),
    "Clamp": Case(1, lambda x: op.clamp(x, -5.0, 2.0**30), lambda x: np.clip(x, -5, 2**30)),
    "Equal:small": _to_small(op.equal, np.equal),
    "NotEqual:small": _to_small(op.not_equal, np.not_equal),
    "Less:small": _to_small(op.less, np.less),
    "LessEqual:small": _to_small(op.less_equal, np.less_equal),
    "Greater:small": _to_small(op.greater, np.greater),
    "GreaterEqual:small": _to_small(op.greater_equal, np.greater_equal),
    "Maximum": Case(2, op.maximum, np.maximum),
    "Minimum": Case(2, op.minimum, np.minimum),
    "Abs": Case(1, op.absolute, np.abs),
    "Negative": Case(1, op.negative, np.negative),
    "TopK": Case(1, lambda x: op.topk(x, constant(9), 0, "max", "value").output(0), lambda x: np.sort(x)[::-1][:9]),
    "Unique": Case(1, lambda x: op.unique(x, None, True, "i64").output(0), np.unique),
    "CumSum": Case(1, lambda x: op.cum_sum(x, constant(0)), np.cumsum),
    "Range": Case(
        1,
        lambda x: op.range(_at(x, 3), op.add(_at(x, 3), _like(x, 3)), constant(1), "i64"),
        lambda x: x[3] + np.arange(3),
    ),
}
EXACT = HANDED_ON | WRAPPING | KEEPING


IN_FLOAT = {
    "Equal": Case(2, op.equal, np.equal),
    "Greater": Case(2, op.greater, np.greater),
    "Mod": Case(2, op.mod, np.fmod),
    "FloorMod": Case(2, op.floor_mod, np.mod),
    "Relu": Case(1, op.relu, lambda x: np.maximum(x, 0)),
    "ReduceMax": Case(1, lambda x: op.reduce_max(_two_rows(x), constant(1), False), lambda x: x.reshape(2, -1).max(1)),
    "ReduceMin": Case(1, lambda x: op.reduce_min(_two_rows(x), constant(1), False), lambda x: x.reshape(2, -1).min(1)),
}


def numbers_of(within: tuple[int, int], seed: int = 1) -> list[Array]:
    """Two arrays of numbers ``within`` those, the first and last among them, and some that float32 can't tell apart."""
    lo, hi = within
    chance = np.random.default_rng(seed)
    x, y = (chance.integers(lo, hi, N, endpoint=True) for _ in range(2))
    known = np.clip([lo, hi, hi - 1, 2**24 + 1, 2**24 + 3, 0], lo, hi)
    x[:6], y[:6] = known, np.clip([hi - 1, lo + 1, 1, *known[3:] - 1], lo, hi)
    y[y == 0] = 1
    return [x, y]


# -- what the plugin computes -------------------------------------------------------


def test_each_operation_that_is_said_to_be_exact_is_tried() -> None:
    assert (HANDED_ON.keys(), WRAPPING.keys(), KEEPING.keys()) == (
        number_ranges._MOVES,
        number_ranges._WRAPS,
        number_ranges._KEEPS,
    )


@pytest.mark.parametrize("size", [N, -1], ids=["fixed", "open"])
@pytest.mark.parametrize(
    ("name", "element"),
    # OpenVINO does not compile a Negative of what has no sign.
    [(n, e) for n in EXACT for e in ("i32", "i64", "u32", "u64") if n != "Negative" or e[0] == "i"],
)
def test_an_exact_operation_keeps_all_32_bits(name: str, element: str, size: int) -> None:
    case = EXACT[name]
    within = (-(2**31), 2**31 - 1) if element[0] == "i" else (0, 2**31 - 1)
    feeds = numbers_of(within)[: case.takes]

    found = run(built(case, element, size), *(feed.astype(TYPES[element]) for feed in feeds))

    expected = case.expected(*feeds)
    assert found.shape == expected.shape
    assert np.array_equal(found.astype(np.int64) & 0xFFFFFFFF, expected.astype(np.int64) & 0xFFFFFFFF)


@pytest.mark.parametrize("name", HANDED_ON | WRAPPING)
def test_what_gives_the_same_bits_does_so_for_all_of_uint32(name: str) -> None:
    case = EXACT[name]
    network, feeds = built(case, "u32"), numbers_of((0, 2**32 - 1))[: case.takes]

    assert held(network) is None
    found = run(network, *(feed.astype(np.uint32) for feed in feeds))
    assert np.array_equal(found.astype(np.int64), case.expected(*feeds) & 0xFFFFFFFF)


@pytest.mark.parametrize("element", ["i32", "i64", "u64"])
@pytest.mark.parametrize("name", IN_FLOAT)
def test_what_is_computed_in_float32_is_right_within_what_is_held(name: str, element: str) -> None:
    case = IN_FLOAT[name]
    network = built(case, element)
    found = held(network)
    assert found is not None
    assert str(found) == (IN_FLOAT32 if element[0] == "i" else "0..16777216")
    assert name in found.why
    feeds = numbers_of((int(found.lo), int(found.hi)))[: case.takes]

    assert np.array_equal(run(network, *(feed.astype(TYPES[element]) for feed in feeds)), case.expected(*feeds))


@pytest.mark.parametrize("name", IN_FLOAT)
def test_what_is_computed_in_float32_is_wrong_beyond(name: str) -> None:
    """Else it were to be taken off the list of what is not exact, which is all that is not listed as exact."""
    case = IN_FLOAT[name]
    feeds = numbers_of((-(2**31), 2**31 - 1))[: case.takes]

    found = run(built(case, "i32"), *(feed.astype(np.int32) for feed in feeds))

    assert not np.array_equal(found, case.expected(*feeds))


@pytest.mark.parametrize(
    ("element", "number", "given"),
    [
        ("i64", 2**31, -(2**31)),
        ("i64", 2**40 + 1, 1),
        ("i64", -(2**31) - 1, 2**31 - 1),
        ("u64", 2**31, 2**64 - 2**31),
        ("u64", 2**63 + 7, 7),
        ("f64", 1e300, 3.4028234663852886e38),
        ("f64", -np.inf, -3.4028234663852886e38),
        ("f64", 16777217.0, 16777216.0),
    ],
)
def test_what_is_too_wide_becomes_another_number(element: str, number: float, given: float) -> None:
    network = built(HANDED_ON["Reshape"], element)

    assert run(network, np.full(N, number, TYPES[element])).ravel()[0] == given


def test_constants_are_clamped() -> None:
    assert run(of_one(lambda x: op.add(x, constant(2**40))), np.zeros(N, np.int64))[0] == 2**31 - 1


# -- what the engine says -----------------------------------------------------------


@pytest.mark.parametrize(
    ("element", "build", "expected"),
    [
        # Nothing is narrowed.
        ("i64", lambda x: x, None),
        ("u64", lambda x: x, None),
        ("f64", lambda x: x, None),
        ("i64", lambda x: op.convert(x, "f32"), None),
        ("i64", lambda x: op.convert(x, "f64"), None),
        ("i32", lambda x: op.equal(x, _like(x, [2**24 - 1] * N)), None),
        ("i32", lambda x: op.less(_like(x, 0), x), None),
        ("u64", lambda x: op.relu(op.convert(x, "f32")), None),
        ("u32", lambda x: op.convert(x, "f32"), None),
        ("i32", lambda x: op.add(x, x), None),
        ("i32", lambda x: op.relu(op.convert(x, "f32")), None),
        ("i32", lambda x: op.gather(op.constant(np.zeros(4, np.float32)), x, constant(0)), None),
        ("i16", lambda x: op.equal(x, x), None),
        ("u8", lambda x: op.reduce_max(x, constant(0), False), None),
        ("f32", op.relu, None),
        ("f16", op.relu, None),
        ("boolean", op.logical_not, None),
        # All is.
        ("i64", lambda x: op.add(x, x), INT32),
        ("u64", lambda x: op.add(x, x), UNSIGNED),
        ("u32", lambda x: op.convert(x, "i64"), UNSIGNED),
        ("u32", lambda x: op.maximum(x, x), UNSIGNED),
        ("u32", lambda x: op.equal(x, x), "0..16777216"),
        ("i32", lambda x: op.equal(x, _like(x, 2**24)), IN_FLOAT32),
        ("i64", lambda x: op.equal(x, _like(x, 7)), INT32),
        ("u32", lambda x: op.equal(x, _like(x, 7)), UNSIGNED),
        ("i64", lambda x: op.clamp(x, 0.0, 7.0), INT32),
        ("i64", lambda x: op.convert(x, "i32"), INT32),
        ("i64", lambda x: op.convert(x, "u8"), INT32),
        ("i64", lambda x: op.convert(x, "boolean"), INT32),
        ("i64", lambda x: op.convert(op.reshape(x, constant([-1, 1]), False), "f32"), INT32),
        ("i64", lambda x: op.gather(op.constant(np.zeros(4, np.float32)), x, constant(0)), INT32),
        (
            "i64",
            lambda x: op.broadcast(op.constant(np.float32(1)), op.slice(x, *map(constant, ([0], [2], [1])))),
            INT32,
        ),
        ("f64", lambda x: op.add(x, x), FLOAT32),
        ("f64", lambda x: op.convert(x, "f32"), FLOAT32),
        ("f64", lambda x: op.convert(x, "i64"), FLOAT32),
        # Float32 comes later.
        ("i32", lambda x: op.equal(op.unsqueeze(op.add(x, x), constant(0)), x), IN_FLOAT32),
        ("i64", lambda x: op.convert(op.mod(x, x), "f32"), IN_FLOAT32),
        ("i32", lambda x: op.mod(op.convert(x, "i64"), constant(7)), IN_FLOAT32),
        ("i32", lambda x: op.scatter_elements_update(x, constant(ORDER), x, constant(0), "max"), IN_FLOAT32),
        # What is small, or no integer any more, is not rounded there.
        ("i32", lambda x: op.reduce_max(op.convert(x, "u8"), constant(0), False), None),
        ("i32", lambda x: op.reduce_max(op.convert(x, "f32"), constant(0), False), None),
        ("i32", lambda x: op.equal(op.shape_of(x), constant(7)), None),
    ],
)
def test_what_is_held_depends_on_what_is_computed(
    element: str, build: Callable[..., Any], expected: str | None
) -> None:
    found = held(of_one(build, element))

    assert (None if found is None else str(found)) == expected


def test_one_path_of_several_is_enough() -> None:
    x = parameter([4], ov.Type.i64)
    network = models.model({"same": x, "float": op.convert(x, "f32"), "sum": op.add(x, x)}, [x])

    assert str(held(network)) == INT32


def test_each_input_is_held_to_its_own() -> None:
    a, b, c = (parameter([4], ov.Type.i64, name) for name in "abc")
    network = models.model({"x": op.add(a, a), "y": op.equal(b, b), "z": c}, [a, b, c])

    found = [spec.held for spec in told(network).inputs]

    assert [None if r is None else str(r) for r in found] == [INT32, IN_FLOAT32, None]


@pytest.mark.parametrize("targets", [["GPU"], ["CPU", "GPU.1"], ["AUTO"], ["HETERO:GPU,CPU"]])
def test_other_devices_are_taken_to_hold_no_more_than_the_cpu_anywhere(targets: list[str]) -> None:
    for build in (lambda x: x, lambda x: op.convert(x, "f32")):
        found = held(of_one(build), *targets)
        assert found is not None
        assert str(found) == INT32
        assert found.why == f"{', '.join(targets)} computes INT64 in 32 bits"
    assert str(held(built(WRAPPING["Add"], "u32"), *targets)) == UNSIGNED


def test_what_is_said_of_a_model() -> None:
    a, b = parameter([4], ov.Type.i64, "a"), parameter([4], ov.Type.f64, "b")
    far = constant(2**40)
    far.set_friendly_name("far")
    network = models.model({"x": op.add(a, far), "y": op.multiply(b, b)}, [a, b])

    said = [
        f"input 'a' holds {INT32} (CPU computes INT64 in 32 bits); others are",
        f"input 'b' holds {FLOAT32} (CPU computes FP64 as FP32); others are",
        "CPU computes FP64 inside of the model as FP32; overflows there go undetected",
        "CPU computes INT64 inside of the model as INT32; overflows there go undetected",
        "CPU clamps constants that are out of its range: 1.09951e+12 in 'far'",
    ]
    assert told(network).remarks == tuple(s + " refused" * s.startswith("input") for s in said)
    accepting = told(network, refused=False)
    assert accepting.remarks == tuple(s + " computed wrong" * s.startswith("input") for s in said)
    assert [spec.checked for spec in accepting.inputs] == [None, None]


@pytest.mark.parametrize(
    "build",
    [
        op.relu,
        # Shapes are of any model; to the end is to the end.
        lambda x: op.reshape(x, op.concat([constant([1]), op.shape_of(x)], 0), False),
        lambda x: op.slice(x, constant([0]), constant([2**63 - 1]), constant([1])),
        lambda x: op.max_pool(op.reshape(x, constant([1, 1, N]), False), [1], [1], [0], [0], [2]).output(0),
    ],
)
def test_nothing_is_said_of_most_models(build: Callable[..., Any]) -> None:
    assert told(of_one(build, "f32")).remarks == ()


# -- the promise --------------------------------------------------------------------


@given(st.data())
@settings(max_examples=examples(40), deadline=None)
def test_what_is_held_is_computed_as_numpy_does(data: st.DataObject) -> None:
    """A model of a few operations, exact ones and others, on numbers that it holds."""
    element = data.draw(st.sampled_from(["i32", "i64"]))
    inputs = [parameter([N], getattr(ov.Type, element), f"x{i}") for i in range(2)]
    named = EXACT | IN_FLOAT
    keep_shape = ["Identity", "Gather", "Roll", "Select", "Add", "Subtract", "Maximum", "Negative", "BitwiseXor"]
    chain = data.draw(st.lists(st.sampled_from(keep_shape), max_size=4))
    last = data.draw(st.sampled_from(["Result", *IN_FLOAT]))
    x, y = inputs
    for name in (*chain, last):
        x = named[name].build(*(x, y)[: named[name].takes])
    network = models.model({"z": x}, inputs)
    bounds = [
        (-(2**31), 2**31 - 1) if spec.held is None else (int(spec.held.lo), int(spec.held.hi))
        for spec in told(network).inputs
    ]
    # Room for what the operations add: what they make of numbers beyond is the model's own matter.
    room = 2 ** (len(chain) + 1)
    feeds = [
        np.clip(feed, lo // room, hi // room)
        for feed, (lo, hi) in zip(numbers_of((-(2**31), 2**31 - 1), data.draw(st.integers(0, 99))), bounds, strict=True)
    ]
    feeds[1][feeds[1] == 0] = 1

    found = run(network, *(feed.astype(TYPES[element]) for feed in feeds))

    expected, other = feeds
    for name in (*chain, last):
        expected = named[name].expected(*(expected, other)[: named[name].takes])
    assert np.array_equal(found, expected)
