"""Two runs compared side by side."""

from dataclasses import replace

import pytest

from inferd.bench.comparison import compare, unmatched_loads
from inferd.bench.load import Closed, Open
from inferd.bench.report import LatencyObjective
from tests.bench.runs import TOLD, run, step, window

SLOW = step(Closed(1), window((20, 40), 2.0), replace(TOLD, cpu=0.004))
QUICK = step(Closed(1), window((10, 20, 20, 20), 2.0), replace(TOLD, cpu=0.002))


def test_every_quantity_is_the_ratio_of_the_second_to_the_first() -> None:
    told = {c.quantity.name: c for c in compare(run(SLOW), run(QUICK))}
    assert list(told) == ["answered", "p50", "p99", "p99.9", "server CPU", "server memory"]
    assert told["answered"].ratio == 2.0
    assert told["p99"].ratio == pytest.approx(0.5, rel=0.002)
    assert told["server CPU"].ratio == 0.5
    assert (told["server CPU"].first, told["server CPU"].second) == (0.004, 0.002)


def test_a_run_is_no_different_from_itself() -> None:
    assert {c.ratio for c in compare(run(SLOW), run(SLOW))} == {1.0}


def test_only_loads_that_both_had_are_compared() -> None:
    other = step(Open(5, "poisson"))
    first, second = run(SLOW, step(Closed(2))), run(other, QUICK)
    assert {c.load for c in compare(first, second)} == {Closed(1)}
    assert unmatched_loads(first, second) == (Closed(2), Open(5, "poisson"))


def test_random_and_even_arrivals_are_two_loads() -> None:
    assert compare(run(step(Open(5, "poisson"))), run(step(Open(5, "constant")))) == ()


def test_a_ratio_to_zero_is_unknown() -> None:
    empty = step(Closed(1), window(()))
    (answered,) = compare(run(empty), run(empty))
    assert (answered.quantity.name, answered.ratio) == ("answered", None)


def test_goodput_is_compared_only_under_the_same_objective() -> None:
    tight, loose = LatencyObjective(0.01, 99.0), LatencyObjective(0.1, 99.0)
    first = run(step(objective=tight), objective=tight)
    assert "goodput" in {c.quantity.name for c in compare(first, first)}
    assert "goodput" not in {c.quantity.name for c in compare(first, run(step(objective=loose), objective=loose))}
