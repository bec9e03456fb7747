"""Which differences between two answers are arithmetic, and which are mistakes."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from inferd.rollout.comparison import difference
from inferd.tensors import DType, Tensor
from tests.engine.models import tensor

FLOATS = (DType.FP16, DType.BF16, DType.FP32, DType.FP64)
WHOLE = tuple(t for t in DType if t not in (*FLOATS, DType.BYTES))
# What the largest element may be off by, as a part of itself.
TOLERANCE = {DType.FP64: 1e-3, DType.FP32: 1e-3, DType.FP16: 2e-2, DType.BF16: 5e-2}


def floats(dtype: DType, values: Any) -> Tensor:
    """``values`` as ``dtype`` holds them."""
    if dtype is not DType.BF16:
        return tensor(values, dtype)
    array = np.asarray(values, np.float32)
    return Tensor(dtype, array.shape, (array.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def strings(*values: bytes) -> Tensor:
    return Tensor(DType.BYTES, (len(values),), list(values))


def of(dtype: DType, *values: int) -> Tensor:
    """A vector of any type."""
    if dtype is DType.BYTES:
        return strings(*(str(v).encode() for v in values))
    return floats(dtype, values) if dtype in FLOATS else tensor(values, dtype)


# -- every type --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DType)
def test_the_same_numbers_agree_in_every_type(dtype: DType) -> None:
    assert difference([of(dtype, 1, 0, 1)], [of(dtype, 1, 0, 1)]) == ""


@pytest.mark.parametrize("dtype", DType)
def test_other_numbers_do_not_in_any_type(dtype: DType) -> None:
    assert difference([of(dtype, 1, 0, 1)], [of(dtype, 1, 1, 0)]).startswith("output 0 ")


@pytest.mark.parametrize("dtype", DType)
def test_nothing_agrees_with_nothing_in_every_type(dtype: DType) -> None:
    shape = (0, 4)
    empty = Tensor(dtype, shape, [] if dtype is DType.BYTES else b"")
    assert difference([empty], [empty]) == ""


@pytest.mark.parametrize("dtype", [t for t in DType if t is not DType.BYTES])
def test_a_number_by_itself_is_compared_as_any(dtype: DType) -> None:
    one, same, other = (Tensor(dtype, (), of(dtype, value).data) for value in (1, 1, 0))
    assert difference([one], [same]) == ""
    assert difference([one], [other]).startswith("output 0 ")


def test_what_a_slot_gives_is_compared_where_it_lies() -> None:
    array = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    seen = Tensor(DType.FP32, (2, 2), memoryview(array))
    assert difference([tensor(array)], [seen]) == ""
    array[1, 1] = 5.0
    assert difference([tensor([[1, 2], [3, 4]])], [seen]) == "output 0 is off by 1 where its largest element is 4"


# -- several outputs, and what they look like ------------------------------------------------


def test_the_output_that_differs_is_named() -> None:
    one, other = tensor([1.0]), tensor([2.0])
    assert difference([one, one, one], [one, other, other]).startswith("output 1 ")


def test_another_shape_is_told() -> None:
    assert difference([tensor([[1, 2]])], [tensor([1, 2])]) == "output 0 is FP32 [2], not FP32 [1, 2]"


def test_another_type_is_told() -> None:
    assert difference([tensor([1])], [tensor([1], DType.FP16)]) == "output 0 is FP16 [1], not FP32 [1]"
    # Of the same width, so that only the type tells them apart.
    assert difference([floats(DType.BF16, [0])], [tensor([0], DType.FP16)]) == "output 0 is FP16 [1], not BF16 [1]"


def test_another_number_of_outputs_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="shorter"):
        difference([tensor([1]), tensor([1])], [tensor([1])])


def test_strings_agree_when_they_are_the_same() -> None:
    assert difference([strings(b"cat", b"")], [strings(b"cat", b"")]) == ""
    assert difference([strings(b"cat", b"")], [strings(b"cat", b"dog")]) == "output 0 has other strings"


# -- how far off numbers may be ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_numbers_may_be_off_in_proportion_to_the_largest(dtype: DType) -> None:
    tolerance = TOLERANCE[dtype]
    expected = floats(dtype, [1024.0, 1.0])
    # The small one may be off by many times itself: in a sum with the large one its digits were lost.
    assert difference([expected], [floats(dtype, [1024.0, 1.0 + 0.9 * 1024 * tolerance])]) == ""
    off = difference([expected], [floats(dtype, [1024.0, 1.0 + 1.1 * 1024 * tolerance])])
    assert off.endswith("where its largest element is 1.02e+03")


@pytest.mark.parametrize("dtype", [DType.FP16, DType.FP32, DType.FP64])
def test_where_the_device_may_compute_in_less_numbers_may_be_further_off(dtype: DType) -> None:
    expected, near, far = floats(dtype, [1.0]), floats(dtype, [1.03125]), floats(dtype, [1.0625])
    assert difference([expected], [near]) == "output 0 is off by 0.0312 where its largest element is 1"
    assert difference([expected], [near], lowered=True) == ""
    assert difference([expected], [far], lowered=True) == "output 0 is off by 0.0625 where its largest element is 1"


def test_where_zeros_are_expected_next_to_nothing_is_as_good() -> None:
    zeros = tensor([0.0, 0.0])
    assert difference([zeros], [tensor([0.0, 9e-10])]) == ""
    assert difference([zeros], [tensor([0.0, 1e-3])]) == "output 0 is off by 0.001 where its largest element is 0"


def test_numbers_too_far_apart_to_subtract_are_off_without_a_warning() -> None:
    expected, seen = tensor([1.7e308], DType.FP64), tensor([-1.7e308], DType.FP64)
    assert difference([expected], [seen]) == "output 0 is off by inf where its largest element is 1.7e+308"


@pytest.mark.parametrize("dtype", WHOLE)
def test_of_whole_numbers_one_in_a_hundred_may_fall_on_the_other_side_of_a_tie(dtype: DType) -> None:
    expected = np.zeros(200, dtype.numpy)
    two, three = expected.copy(), expected.copy()
    two[:2], three[:3] = 1, 1
    assert difference([tensor(expected, dtype)], [tensor(two, dtype)]) == ""
    assert difference([tensor(expected, dtype)], [tensor(three, dtype)]) == "output 0 differs in 1.5% of its elements"


def test_whole_numbers_that_floats_can_not_tell_apart_are_told_apart() -> None:
    large = 2**60
    assert difference([tensor([large], DType.INT64)], [tensor([large + 1], DType.INT64)]) != ""


# -- what is no number --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_to_be_in_the_same_places(dtype: DType, special: float) -> None:
    here, there = floats(dtype, [1.0, special, 2.0]), floats(dtype, [special, 1.0, 2.0])
    assert difference([here], [here]) == ""
    for one, other in ((here, there), (here, floats(dtype, [1.0, 1.0, 2.0])), (floats(dtype, [1, 1, 2]), here)):
        assert difference([one], [other]) == "output 0 has other infinities or NaNs"


@pytest.mark.parametrize(("one", "other"), [(math.nan, math.inf), (math.inf, -math.inf), (-math.inf, math.nan)])
def test_one_that_is_no_number_is_not_another(one: float, other: float) -> None:
    assert difference([tensor([1.0, one])], [tensor([1.0, other])]) == "output 0 has other infinities or NaNs"


def test_beside_them_the_numbers_still_count() -> None:
    expected, seen = tensor([math.nan, math.inf, 1.0]), tensor([math.nan, math.inf, 2.0])
    assert difference([expected], [seen]) == "output 0 is off by 1 where its largest element is 1"


def test_nothing_but_nans_agrees_with_the_same() -> None:
    nans = tensor([math.nan, math.nan])
    assert difference([nans], [nans]) == ""


@pytest.mark.parametrize(
    ("dtype", "word"),
    [(DType.BF16, b"\x81\x7f"), (DType.FP16, b"\x01\x7c"), (DType.FP32, b"\x01\x00\x80\x7f")],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_nan_that_signals_is_one_as_any_and_raises_no_warning(dtype: DType, word: bytes) -> None:
    signals, nan = Tensor(dtype, (1,), word), floats(dtype, [math.nan])
    assert difference([signals], [nan]) == difference([nan], [signals]) == ""


# -- whatever the numbers ----------------------------------------------------------------------------

SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


@pytest.mark.parametrize("dtype", [t for t in DType if t is not DType.BYTES])
@given(st.data())
def test_any_bits_agree_with_themselves(dtype: DType, data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    words = data.draw(arrays.arrays(np.uint8, math.prod(shape) * dtype.itemsize))
    if dtype is DType.BOOL:
        words &= 1
    one = Tensor(dtype, shape, words.tobytes())
    assert difference([one], [one]) == ""


SEVERAL = arrays.arrays(np.float32, st.integers(1, 20), elements=st.floats(-(2.0**100), 2.0**100, width=32))


@given(SEVERAL, st.data())
def test_noise_is_arithmetic_up_to_a_part_of_the_largest_and_a_mistake_beyond(
    values: "np.ndarray[Any, np.dtype[np.float32]]", data: st.DataObject
) -> None:
    largest = float(np.abs(values).max())
    assume(largest > 1e-3)
    place = data.draw(st.integers(0, len(values) - 1))
    part = data.draw(st.floats(0, 8e-4) | st.floats(2e-3, 1e3))
    seen = values.copy()
    seen[place] += np.float32(part * largest)
    assert (difference([tensor(values)], [tensor(seen)]) == "") is (part < 1e-3)


@given(SEVERAL, st.integers(-30, 30))
def test_the_scale_of_the_numbers_does_not_matter(
    values: "np.ndarray[Any, np.dtype[np.float32]]", exponent: int
) -> None:
    wide = values.astype(np.float64)
    assume(np.abs(wide).max() > 1e-3)
    off = wide * 1.01
    factor = 2.0**exponent
    assume(np.abs(wide * factor).max() > 1e-5)
    assert difference([tensor(wide * factor, DType.FP64)], [tensor(off * factor, DType.FP64)]) != ""
    assert difference([tensor(wide * factor, DType.FP64)], [tensor(wide * factor * 1.0005, DType.FP64)]) == ""
