"""Sequences: one request at a time, in order, on a state that is sound or gone."""

import pytest

from inferd.errors import SequenceGone, SequenceLost, TooManySequences
from inferd.requests import Request, SequenceStep
from inferd.scheduling.rules import Lane, Limits, Rules
from inferd.scheduling.scheduler import Scheduler
from inferd.scheduling.sequences import SequenceLimits
from tests.scheduling.work import work


def scheduler(*, pinned: bool = False, slots: int = 4, width: int = 4) -> Scheduler:
    rules = Rules(Limits(100, 1000), sequences=SequenceLimits(2, 100), pinned=pinned)
    return Scheduler("m", rules, [Lane(slots, width)])


def step(to: Scheduler, name: str, *, start: bool = False, end: bool = False, now: int = 0) -> Request:
    request = work(step=SequenceStep(name, start, end))
    to.submit(request, now)
    return request


def started(one: Scheduler, now: int) -> list[tuple[Request, int]]:
    return [(run.members[0].request, run.slot) for run in one.poll(now).starts]


def test_requests_of_a_sequence_run_one_after_the_other() -> None:
    one = scheduler()
    asked = [step(one, "a", start=True), step(one, "a"), step(one, "a", end=True)]
    for now, request in enumerate(asked):
        ((running, slot),) = started(one, now)
        assert running is request
        one.finished(0, slot, now)
    assert one.sequences == 0


def test_a_sequence_that_was_never_started_or_has_ended_is_gone() -> None:
    one = scheduler()
    with pytest.raises(SequenceGone, match="is not known"):
        step(one, "a")
    step(one, "a", start=True, end=True)
    with pytest.raises(SequenceGone, match="has ended"):
        step(one, "a")


def test_no_more_sequences_live_than_may() -> None:
    one = scheduler()
    step(one, "a", start=True)
    step(one, "b", start=True)
    with pytest.raises(TooManySequences):
        step(one, "c", start=True)


def test_a_failed_request_loses_its_sequence_and_whoever_was_held_behind() -> None:
    one = scheduler()
    step(one, "a", start=True)
    behind = step(one, "a")
    ((_, slot),) = started(one, 0)
    one.finished(0, slot, 1, ok=False)
    ((refused, error),) = one.poll(1).refused
    assert refused is behind
    assert isinstance(error, SequenceLost)
    with pytest.raises(SequenceLost, match="failed"):
        step(one, "a", now=2)


def test_a_sequence_that_rests_too_long_is_over() -> None:
    one = scheduler()
    step(one, "a", start=True)
    ((_, slot),) = started(one, 0)
    one.finished(0, slot, 10)
    assert one.poll(109).wake_at == 110
    one.poll(110)
    with pytest.raises(SequenceGone, match="timed out"):
        step(one, "a", now=111)


def test_a_pinned_sequence_keeps_its_slot_while_others_run() -> None:
    one = scheduler(pinned=True, slots=2, width=1)
    slots = []
    for now, (name, start) in enumerate([("a", True), ("b", True), ("a", False), ("b", False)]):
        step(one, name, start=start, now=now)
        ((_, slot),) = started(one, now)
        one.finished(0, slot, now)
        slots.append(slot)
    assert slots[0] != slots[1]
    assert slots[2:] == slots[:2]
