"""A search driven to its end, or until it is stopped."""

from dataclasses import replace
from itertools import count

import pytest

from inferd.tuner.session import Progress, SearchStopped, tune
from inferd.tuning.candidates import Candidate, Space
from inferd.tuning.goal import Goal
from inferd.tuning.measurement import Measurement, MeasurementWindow
from inferd.tuning.outcome import Outcome
from inferd.tuning.search import Search

SPACE = Space((1, 2, 4), (1, 2, 4), (1, 2, 4, 8))
BEST = Candidate(2, 4, 4)
LOOSE = Goal("throughput", 1.0)


class Device:
    """Answers fastest with two streams, and each thread and request more helps."""

    def __init__(self) -> None:
        self.asked: list[tuple[Candidate, int]] = []

    def measure(self, candidate: Candidate, windows: int) -> Measurement:
        self.asked.append((candidate, windows))
        answers = 100 * candidate.threads // (1 + abs(candidate.streams - 2)) + 10 * min(candidate.requests, 4)
        window = MeasurementWindow(1.0, (0.01,) * answers)
        return Measurement(candidate, candidate, (window,) * windows, windows * 1.1)


def search(goal: Goal = LOOSE, budget: float = 1000.0) -> Search:
    return Search(SPACE, goal, [Candidate(1, 4, 1), Candidate(4, 4, 4)], budget=budget)


def test_the_search_is_driven_to_its_outcome() -> None:
    device = Device()
    outcome = tune(search(), device.measure, 1000.0)
    assert isinstance(outcome, Outcome)
    assert outcome.winner is not None
    assert outcome.winner.candidate == BEST
    assert {point.candidate for point in outcome.points} == {candidate for candidate, _ in device.asked}
    assert sum(point.windows for point in outcome.points) == sum(windows for _, windows in device.asked)


def test_each_look_is_told_before_and_after() -> None:
    device, told = Device(), list[Progress]()
    tune(search(), device.measure, 1000.0, told.append)
    before, after = told[::2], told[1::2]
    assert len(before) == len(after) == len(device.asked)
    assert [(p.look.candidate, p.look.windows) for p in before] == device.asked
    assert [p.look for p in before] == [p.look for p in after]
    assert [p.measured for p in before] == [None] * len(before)
    assert [p.measured and p.measured.asked for p in after] == [candidate for candidate, _ in device.asked]
    assert [p.looks for p in before] == list(range(len(before)))
    assert [p.looks for p in after] == list(range(1, len(before) + 1))
    # Nothing is the best before anything was seen.
    assert before[0].best is None
    assert all(p.best is not None for p in after)
    assert after[-1].best is not None
    assert after[-1].best.candidate.streams == BEST.streams
    spent = [p.spent for p in told]
    assert spent == sorted(spent)
    assert {p.budget for p in told} == {1000.0}


def test_an_objection_stops_it_before_the_next_look() -> None:
    device, told, turns = Device(), list[Progress](), count(1)
    with pytest.raises(SearchStopped) as stopped:
        tune(search(), device.measure, 1000.0, told.append, lambda: "too busy" if next(turns) == 4 else "")
    assert (str(stopped.value), stopped.value.why) == ("too busy", "too busy")
    assert len(device.asked) == 3
    assert [p.looks for p in told] == [0, 1, 1, 2, 2, 3]


def test_somebody_who_objects_from_the_start_sees_nothing_measured() -> None:
    device, told = Device(), list[Progress]()
    with pytest.raises(SearchStopped, match="no"):
        tune(search(), device.measure, 1000.0, told.append, lambda: "no")
    assert device.asked == told == []


def test_what_is_over_is_not_objected_to() -> None:
    asked = 0

    def stop_reason() -> str:
        nonlocal asked
        asked += 1
        return ""

    device = Device()
    tune(search(), device.measure, 1000.0, stop_reason=stop_reason)
    assert asked == len(device.asked)


def test_candidates_that_fail_are_in_the_outcome_with_the_reason() -> None:
    def measure(candidate: Candidate, windows: int) -> Measurement:
        if candidate.streams == 4:
            return Measurement(candidate, candidate, (), 0.1, "too many streams")
        return Device().measure(candidate, windows)

    outcome = tune(search(), measure, 1000.0)
    assert outcome.winner is not None
    assert outcome.winner.candidate == BEST
    assert outcome.left_out[Candidate(4, 4, 4)] == "too many streams"


def test_where_nothing_runs_there_is_an_outcome_without_a_winner() -> None:
    outcome = tune(search(), lambda c, _: Measurement(c, c, (), 0.1, "no such device"), 1000.0)
    assert outcome.winner is None
    assert "no such device" in outcome.reason


def test_a_budget_that_is_spent_ends_it() -> None:
    # Each look takes far more of the budget than there is: after the seeds, nothing is affordable.
    device = Device()

    def dear(candidate: Candidate, windows: int) -> Measurement:
        return replace(device.measure(candidate, windows), cost=1000.0)

    outcome = tune(search(budget=10.0), dear, 10.0)
    assert {candidate for candidate, _ in device.asked} == {Candidate(1, 4, 1), Candidate(4, 4, 4)}
    assert outcome.winner is not None


def test_a_measurement_that_raises_ends_it_as_it_is() -> None:
    def broken(_: Candidate, __: int) -> Measurement:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(search(), broken, 1000.0)
