"""Where to look next."""

from collections.abc import Iterator
from dataclasses import replace

from inferd.tuning.candidates import Candidate, Space
from inferd.tuning.climb import Climb
from inferd.tuning.costs import Costs
from inferd.tuning.evidence import Evidence
from inferd.tuning.measurement import Window
from inferd.tuning.moves import move_between
from inferd.tuning.objective import Goal

LINE = Space((1,), (4,), (1, 2, 4, 8, 16), pinning=(True, False))
START = Candidate(1, 4, 1, pinning=True)
GOAL = Goal("throughput", 0.1)


def window(rate: int, latency: float = 0.01) -> Window:
    return Window(1.0, (latency,) * rate)


def proposals(climb: Climb, evidence: Evidence, rates: dict[Candidate, tuple[int, float]]) -> Iterator[Candidate]:
    """What ``climb`` asks for one after the other, where candidates have these rates and latencies, or 10 a second."""
    while found := climb.propose(evidence.ranking(), evidence, Costs(), LINE.contains):
        before = evidence.ranking()[0]
        evidence.add(found[0], [window(*rates.get(found[0], (10, 0.01)))] * 2)
        climb.learn(move_between(before.candidate, found[0]), before, evidence[found[0]])
        yield found[0]


def begun(rate: int = 100, latency: float = 0.01) -> tuple[Climb, Evidence]:
    evidence = Evidence(GOAL)
    evidence.add(START, [window(rate, latency)] * 4)
    return Climb(LINE, START), evidence


def test_streams_and_batches_far_apart_come_first() -> None:
    space = Space((1, 2, 4), (4,), (1, 2, 4), (1, 2, 4))
    evidence = Evidence(GOAL)
    evidence.add(Candidate(1, 4, 1), [window(100)] * 4)
    climb, seen = Climb(space, Candidate(4, 4, 4)), set()
    while (found := climb.propose(evidence.ranking(), evidence, Costs(), space.contains)) and "overview" in found[1]:
        seen.add((found[0].streams, found[0].requests, found[0].batch))
        evidence.add(found[0], [window(10)] * 2)
    assert {(4, 4, 1), (4, 4, 4), (1, 1, 4), (2, 2, 2)} <= seen


def test_what_gained_is_tried_again_first_and_in_longer_steps() -> None:
    climb, evidence = begun()
    rates = {replace(START, requests=r): (100 * r, 0.01) for r in (2, 8)}
    first = next(proposals(climb, evidence, rates))
    assert first == replace(START, requests=2)
    assert next(proposals(climb, evidence, rates)) == replace(START, requests=8)


def test_what_lost_is_tried_last() -> None:
    climb, evidence = begun()
    climb.learn((("requests", 1),), evidence[START], evidence[START])
    evidence.add(replace(START, requests=16), [window(10)] * 2)
    climb.learn((("requests", 1),), evidence[START], evidence[replace(START, requests=16)])
    assert next(proposals(climb, evidence, {})) == replace(START, pinning=False)


def test_nothing_is_tried_with_more_in_flight_than_what_was_late() -> None:
    climb, evidence = begun()
    late = {replace(START, requests=r): (100, 1.0) for r in (2, 4, 8, 16)}
    tried = list(proposals(climb, evidence, late))
    assert [c.requests for c in tried if c.pinning] == [2]


def test_in_the_end_all_of_a_small_space_may_be_tried_and_nothing_twice() -> None:
    climb, evidence = begun()
    tried = list(proposals(climb, evidence, {}))
    assert len(tried) == len(set(tried))
    assert len(tried) >= 5


def test_what_may_not_be_is_not_proposed() -> None:
    climb, evidence = begun()
    assert climb.propose(evidence.ranking(), evidence, Costs(), lambda _: False) is None
