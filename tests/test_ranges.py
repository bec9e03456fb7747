"""Whether numbers are in a device's range, checked against Python's own arithmetic."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferd.ranges import Number, Range

FLOAT32 = float(np.finfo(np.float32).max)
RANGES = {
    "int64": Range(np.dtype(np.int64), -(2**31), 2**31 - 1, "narrow"),
    "int32": Range(np.dtype(np.int32), -(2**24), 2**24, "rounded"),
    "uint64": Range(np.dtype(np.uint64), 0, 2**31 - 1, "narrow"),
    "uint32": Range(np.dtype(np.uint32), 0, 2**31 - 1, "narrow"),
    "float64": Range(np.dtype(np.float64), -FLOAT32, FLOAT32, "narrow"),
}


def elements_of(held: Range) -> st.SearchStrategy[Number]:
    """Any numbers of the type, including the ends of the range."""
    if held.dtype.kind == "f":
        ends = [held.lo, held.hi, math.nextafter(held.hi, math.inf), math.inf, -math.inf, math.nan]
        return st.sampled_from(ends) | st.floats()
    bounds = np.iinfo(held.dtype.name)
    lo, hi = int(bounds.min), int(bounds.max)
    ends = [n for end in (held.lo, held.hi) for n in (end - 1, end, end + 1) if lo <= n <= hi]
    return st.sampled_from([lo, hi, *ends]) | st.integers(lo, hi) | st.integers(int(held.lo), int(held.hi))


@pytest.mark.parametrize("name", RANGES)
@given(data=st.data(), view=st.booleans())
@settings(deadline=None)
def test_numbers_are_in_range_or_the_first_outside_is_found(name: str, data: st.DataObject, view: bool) -> None:
    held = RANGES[name]
    numbers = data.draw(st.lists(elements_of(held), max_size=80))
    raw = np.array(numbers, held.dtype).tobytes()
    packed = memoryview(raw) if view else raw
    outside = [(at, n) for at, n in enumerate(numbers) if n < held.lo or n > held.hi]

    assert held.holds(packed) is not bool(outside)
    if outside:
        assert held.first_outside(packed) == outside[0]


def test_a_range_is_shown_with_both_ends() -> None:
    assert [str(held) for held in RANGES.values()] == [
        "-2147483648..2147483647",
        "-16777216..16777216",
        "0..2147483647",
        "0..2147483647",
        "-3.4028234663852886e+38..3.4028234663852886e+38",
    ]
