"""The estimated cost of a measurement."""

from dataclasses import replace

from inferd.tuning.candidates import Candidate
from inferd.tuning.costs import Costs
from inferd.tuning.measurement import Measurement, MeasurementWindow

ONE = Candidate(1, 2, 1)
TWO, THREE = replace(ONE, streams=2, requests=2), replace(ONE, threads=1)


def learn(costs: Costs, candidate: Candidate, setup: float, windows: int = 2, seconds: float = 0.5) -> None:
    seen = (MeasurementWindow(seconds, (0.1,)),) * windows
    costs.learn(Measurement(candidate, candidate, seen, setup + windows * seconds))


def test_nothing_is_foreseen_before_anything_was_seen() -> None:
    assert Costs().predict([ONE], 4) == 0


def test_another_model_is_compiled_one_from_before_imported_and_the_same_one_used() -> None:
    costs = Costs()
    learn(costs, ONE, 3.0)
    learn(costs, TWO, 2.0)
    learn(costs, ONE, 1.0)
    learn(costs, replace(ONE, batch=2), 0.1)
    assert costs.predict([THREE], 2) == 3 + 1
    assert costs.predict([TWO], 2) == 1 + 1
    assert costs.predict([replace(ONE, requests=2)], 4) == 0.1 + 2
    assert costs.switches(TWO)
    assert not costs.switches(replace(ONE, path="sync"))


def test_what_was_not_seen_yet_is_taken_for_the_cheapest_of_what_takes_more() -> None:
    costs = Costs()
    learn(costs, ONE, 3.0)
    assert costs.predict([ONE], 1) == 3.5
    learn(costs, TWO, 2.0)
    learn(costs, ONE, 1.0)
    assert costs.predict([ONE], 1) == 1.5


def test_looks_in_a_row_change_the_model_between_them() -> None:
    costs = Costs()
    for candidate, setup in ((ONE, 3.0), (TWO, 3.0), (ONE, 1.0), (ONE, 0.25)):
        learn(costs, candidate, setup)
    assert costs.predict([ONE, TWO, TWO, ONE], 1) == 0.25 + 1 + 0.25 + 1 + 4 * 0.5


def test_a_candidate_with_long_windows_makes_only_its_own_and_unknown_ones_long() -> None:
    costs = Costs()
    learn(costs, ONE, 0.0)
    learn(costs, replace(ONE, batch=2), 0.0, seconds=3.0)
    assert costs.predict([ONE], 1) == 0.5
    assert costs.predict([replace(ONE, batch=4)], 1) == 3


def test_failures_teach_nothing() -> None:
    costs = Costs()
    costs.learn(Measurement(ONE, ONE, (), 60.0, "took too long"))
    assert costs.predict([TWO], 1) == 0
