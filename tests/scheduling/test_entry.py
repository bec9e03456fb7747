"""A request inside the scheduler only makes the transitions in its table."""

from itertools import product

import pytest

from inferd.scheduling.entry import TRANSITIONS, Entry, EntryState
from tests.scheduling.work import work

STEPS = list(product(EntryState, EntryState))


@pytest.mark.parametrize(("now", "to"), [(a, b) for a, b in STEPS if b in TRANSITIONS[a]])
def test_a_transition_in_the_table_is_made(now: EntryState, to: EntryState) -> None:
    entry = Entry(work(), 0, 0, state=now)
    entry.move(to)
    assert entry.state is to


@pytest.mark.parametrize(("now", "to"), [(a, b) for a, b in STEPS if b not in TRANSITIONS[a]])
def test_a_transition_outside_the_table_is_a_bug(now: EntryState, to: EntryState) -> None:
    entry = Entry(work(), 0, 0, state=now)
    with pytest.raises(AssertionError, match=f"a {now.value} request can't become {to.value}"):
        entry.move(to)
    assert entry.state is now


def test_an_ended_request_stays_ended() -> None:
    assert TRANSITIONS[EntryState.ENDED] == frozenset()


def test_a_request_without_a_priority_comes_after_the_lowest_priority() -> None:
    assert Entry(work(priority=0), 0, 0).level > Entry(work(priority=2**64 - 1), 1, 0).level
