"""The loads of a run, as flags write them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.bench.sweep import parse

positive = st.integers(1, 10_000)


@pytest.mark.parametrize(
    ("text", "loads"),
    [
        ("8", (8,)),
        ("1,4,16", (1, 4, 16)),
        ("1:32:2x", (1, 2, 4, 8, 16, 32)),
        ("1:30:2x", (1, 2, 4, 8, 16)),
        ("100:400:100", (100, 200, 300, 400)),
        ("5:5:1", (5,)),
        ("1, 2:4:1, 2", (1, 2, 3, 4)),
        ("1:2:1.5x", (1, 1.5)),
    ],
)
def test_a_sweep_has_the_loads_that_it_names(text: str, loads: tuple[float, ...]) -> None:
    assert parse(text) == loads


def test_steps_of_a_tenth_end_where_they_should() -> None:
    # Added up as binary fractions they would miss the end.
    assert parse("0.1:0.7:0.1") == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@given(start=positive, step=positive, count=st.integers(0, 50))
def test_an_arithmetic_sweep_holds_both_ends_and_equal_steps(start: int, step: int, count: int) -> None:
    end = start + count * step
    assert parse(f"{start}:{end}:{step}", whole=True) == tuple(range(start, end + 1, step))


@given(start=st.integers(1, 100), end=positive, factor=st.integers(2, 9))
def test_a_geometric_sweep_stays_within_its_ends(start: int, end: int, factor: int) -> None:
    if end < start:
        start, end = end, start
    loads = parse(f"{start}:{end}:{factor}x")
    assert loads[0] == start
    assert loads[-1] <= end < loads[-1] * factor
    assert all(b == a * factor for a, b in pairwise(loads))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is not a number"),
        ("many", "'many' is not a number"),
        ("0", "not a positive number"),
        ("-1", "not a positive number"),
        ("inf", "not a positive number"),
        ("nan", "not a positive number"),
        ("1:2", "neither a number nor START:END:STEP"),
        ("1:2:3:4", "neither a number nor START:END:STEP"),
        ("8:1:2x", "does not lead from its start to its end"),
        ("1:8:1x", "does not lead from its start to its end"),
        ("1:1000000:1", "more than 100 loads"),
    ],
)
def test_an_invalid_sweep_is_one_sentence(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(text)


def test_a_number_of_clients_must_be_whole() -> None:
    with pytest.raises(ValueError, match="not whole"):
        parse("1:4:1.5x", whole=True)
