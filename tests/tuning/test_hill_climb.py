"""Where to look next."""

from collections.abc import Iterator
from dataclasses import replace

from inferd.tuning.candidates import Candidate, Space
from inferd.tuning.costs import Costs
from inferd.tuning.deltas import delta_between
from inferd.tuning.estimates import Estimates
from inferd.tuning.goal import Goal
from inferd.tuning.hill_climb import HillClimb
from inferd.tuning.measurement import MeasurementWindow

LINE = Space((1,), (4,), (1, 2, 4, 8, 16), choices={"pinning": (True, False)})
START = Candidate(1, 4, 1, pinning=True)
GOAL = Goal("throughput", 0.1)


def window(rate: int, latency: float = 0.01) -> MeasurementWindow:
    return MeasurementWindow(1.0, (latency,) * rate)


def proposals(
    hill_climb: HillClimb, estimates: Estimates, rates: dict[Candidate, tuple[int, float]]
) -> Iterator[Candidate]:
    """What ``hill_climb`` asks for one after the other, where candidates have these rates and latencies, or 10 a
    second."""
    while found := hill_climb.propose(estimates.ranking(), estimates, Costs(), LINE.contains):
        before = estimates.ranking()[0]
        estimates.add(found[0], [window(*rates.get(found[0], (10, 0.01)))] * 2)
        hill_climb.learn(delta_between(before.candidate, found[0]), before, estimates[found[0]])
        yield found[0]


def begun(rate: int = 100, latency: float = 0.01) -> tuple[HillClimb, Estimates]:
    estimates = Estimates(GOAL)
    estimates.add(START, [window(rate, latency)] * 4)
    return HillClimb(LINE, START), estimates


def test_streams_and_batches_far_apart_come_first() -> None:
    space = Space((1, 2, 4), (4,), (1, 2, 4), (1, 2, 4))
    estimates = Estimates(GOAL)
    estimates.add(Candidate(1, 4, 1), [window(100)] * 4)
    hill_climb, seen = HillClimb(space, Candidate(4, 4, 4)), set()
    while (
        found := hill_climb.propose(estimates.ranking(), estimates, Costs(), space.contains)
    ) and "overview" in found[1]:
        seen.add((found[0].streams, found[0].requests, found[0].batch))
        estimates.add(found[0], [window(10)] * 2)
    assert {(4, 4, 1), (4, 4, 4), (1, 1, 4), (2, 2, 2)} <= seen


def test_what_gained_is_tried_again_first_and_in_longer_steps() -> None:
    hill_climb, estimates = begun()
    rates = {replace(START, requests=r): (100 * r, 0.01) for r in (2, 8)}
    first = next(proposals(hill_climb, estimates, rates))
    assert first == replace(START, requests=2)
    assert next(proposals(hill_climb, estimates, rates)) == replace(START, requests=8)


def test_what_lost_is_tried_last() -> None:
    hill_climb, estimates = begun()
    hill_climb.learn((("requests", 1),), estimates[START], estimates[START])
    estimates.add(replace(START, requests=16), [window(10)] * 2)
    hill_climb.learn((("requests", 1),), estimates[START], estimates[replace(START, requests=16)])
    assert next(proposals(hill_climb, estimates, {})) == replace(START, pinning=False)


def test_nothing_is_tried_with_more_in_flight_than_what_was_late() -> None:
    hill_climb, estimates = begun()
    late = {replace(START, requests=r): (100, 1.0) for r in (2, 4, 8, 16)}
    tried = list(proposals(hill_climb, estimates, late))
    assert [c.requests for c in tried if c.pinning] == [2]


def test_in_the_end_all_of_a_small_space_may_be_tried_and_nothing_twice() -> None:
    hill_climb, estimates = begun()
    tried = list(proposals(hill_climb, estimates, {}))
    assert len(tried) == len(set(tried))
    assert len(tried) >= 5


def test_what_may_not_be_is_not_proposed() -> None:
    hill_climb, estimates = begun()
    assert hill_climb.propose(estimates.ranking(), estimates, Costs(), lambda _: False) is None
