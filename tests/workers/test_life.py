"""The life of a worker: its table, when it is replaced, and when enough of them serve."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.workers.life import ALIVE, MOVES, SERVING, Event, Life, State, quorum, ready


def lived(*events: Event) -> Life:
    life = Life()
    for event in events:
        life.see(event, 0.0)
    return life


def test_it_starts_serves_reloads_and_ends_when_told() -> None:
    life = lived(Event.STARTED, Event.READY, Event.RELOADING, Event.READY)
    assert life.state is State.READY
    life.see(Event.TOLD, 1.0)
    assert life.state is State.ENDING
    life.see(Event.DIED, 2.0)
    assert life.state is State.ENDED


def test_one_that_is_told_to_end_may_still_say_that_it_is_ready() -> None:
    life = lived(Event.STARTED, Event.TOLD)
    assert not life.see(Event.READY, 1.0)
    assert life.state is State.ENDING


def test_whoever_dies_unasked_waits_to_be_started_again() -> None:
    for events in ([Event.STARTED], [Event.STARTED, Event.READY], [Event.STARTED, Event.READY, Event.RELOADING]):
        assert lived(*events, Event.DIED).state is State.WAITING


def test_no_state_but_the_last_is_without_a_way_out() -> None:
    assert {state for state, _ in MOVES} == set(State) - {State.ENDED}
    assert ALIVE >= SERVING


def test_the_first_death_is_mended_at_once_and_then_it_takes_longer_each_time() -> None:
    life, rests = Life(), []
    for _ in range(9):
        life.see(Event.STARTED, life.due)
        now = life.due + 5.0
        life.see(Event.DIED, now)
        rests.append(life.due - now)
    assert rests == [0, 1, 2, 4, 8, 16, 32, 60, 60]


def test_one_that_has_served_for_long_is_replaced_at_once_again() -> None:
    life = Life()
    for _ in range(4):
        life.see(Event.STARTED, 0.0)
        life.see(Event.DIED, 0.0)
    life.see(Event.STARTED, 10.0)
    life.see(Event.READY, 20.0)
    life.see(Event.DIED, 80.0)
    assert life.due == 80.0
    assert life.generation == 5


def test_one_that_dies_soon_after_it_is_ready_has_not_proved_itself() -> None:
    life, due = Life(), []
    for _ in range(3):
        life.see(Event.STARTED, 0.0)
        life.see(Event.READY, 10.0)
        life.see(Event.DIED, 11.0)
        due.append(life.due)
    assert due == [11.0, 12.0, 13.0]


def test_only_one_that_serves_is_ever_silent() -> None:
    life = lived(Event.STARTED)
    assert not life.silent(1000.0, 30.0)
    life.see(Event.READY, 1000.0)
    assert not life.silent(1030.0, 30.0)
    assert life.silent(1031.0, 30.0)
    life.heard = 1031.0
    assert not life.silent(1031.0, 30.0)


@given(st.lists(st.sampled_from(Event)))
def test_it_moves_along_the_table_alone(events: list[Event]) -> None:
    life = Life()
    for event in events:
        before = life.state
        moved = life.see(event, 0.0)
        assert life.state is MOVES.get((before, event), before)
        assert moved is ((before, event) in MOVES)


@pytest.mark.parametrize(("count", "enough"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_half_of_them_are_enough_once_all_have_served(count: int, enough: int) -> None:
    assert quorum(count) == enough
    states = [State.READY] * enough + [State.WAITING] * (count - enough)
    assert ready(states, complete=True)
    assert not ready([State.WAITING, *states[1:]], complete=True)
    assert ready(states, complete=False) is (enough == count)


def test_one_that_reloads_serves_and_one_that_ends_does_not() -> None:
    assert ready([State.RELOADING, State.READY], complete=False)
    assert not ready([State.ENDING, State.ENDING], complete=True)
