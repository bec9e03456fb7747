"""The lifecycle of a worker: its table, when it is replaced, and when enough workers serve."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.workers.lifecycle import (
    ALIVE,
    SERVING,
    TRANSITIONS,
    WorkerEvent,
    WorkerLifecycle,
    WorkerState,
    is_ready,
    quorum,
)


def lived(*events: WorkerEvent) -> WorkerLifecycle:
    lifecycle = WorkerLifecycle()
    for event in events:
        lifecycle.apply(event, 0.0)
    return lifecycle


def test_it_starts_serves_reloads_and_ends_when_told() -> None:
    lifecycle = lived(WorkerEvent.STARTED, WorkerEvent.READY, WorkerEvent.RELOADING, WorkerEvent.READY)
    assert lifecycle.state is WorkerState.READY
    lifecycle.apply(WorkerEvent.STOP, 1.0)
    assert lifecycle.state is WorkerState.ENDING
    lifecycle.apply(WorkerEvent.DIED, 2.0)
    assert lifecycle.state is WorkerState.ENDED


def test_one_that_is_told_to_end_may_still_say_that_it_is_ready() -> None:
    lifecycle = lived(WorkerEvent.STARTED, WorkerEvent.STOP)
    assert not lifecycle.apply(WorkerEvent.READY, 1.0)
    assert lifecycle.state is WorkerState.ENDING


def test_whoever_dies_unasked_waits_to_be_started_again() -> None:
    for events in (
        [WorkerEvent.STARTED],
        [WorkerEvent.STARTED, WorkerEvent.READY],
        [WorkerEvent.STARTED, WorkerEvent.READY, WorkerEvent.RELOADING],
    ):
        assert lived(*events, WorkerEvent.DIED).state is WorkerState.WAITING


def test_no_state_but_the_last_is_without_a_way_out() -> None:
    assert {state for state, _ in TRANSITIONS} == set(WorkerState) - {WorkerState.ENDED}
    assert ALIVE >= SERVING


def test_the_first_death_is_mended_at_once_and_then_it_takes_longer_each_time() -> None:
    lifecycle, rests = WorkerLifecycle(), []
    for _ in range(9):
        lifecycle.apply(WorkerEvent.STARTED, lifecycle.start_due)
        now = lifecycle.start_due + 5.0
        lifecycle.apply(WorkerEvent.DIED, now)
        rests.append(lifecycle.start_due - now)
    assert rests == [0, 1, 2, 4, 8, 16, 32, 60, 60]


def test_one_that_has_served_for_long_is_replaced_at_once_again() -> None:
    lifecycle = WorkerLifecycle()
    for _ in range(4):
        lifecycle.apply(WorkerEvent.STARTED, 0.0)
        lifecycle.apply(WorkerEvent.DIED, 0.0)
    lifecycle.apply(WorkerEvent.STARTED, 10.0)
    lifecycle.apply(WorkerEvent.READY, 20.0)
    lifecycle.apply(WorkerEvent.DIED, 80.0)
    assert lifecycle.start_due == 80.0
    assert lifecycle.generation == 5


def test_one_that_dies_soon_after_it_is_ready_has_not_proved_itself() -> None:
    lifecycle, due = WorkerLifecycle(), []
    for _ in range(3):
        lifecycle.apply(WorkerEvent.STARTED, 0.0)
        lifecycle.apply(WorkerEvent.READY, 10.0)
        lifecycle.apply(WorkerEvent.DIED, 11.0)
        due.append(lifecycle.start_due)
    assert due == [11.0, 12.0, 13.0]


def test_only_one_that_serves_is_ever_silent() -> None:
    lifecycle = lived(WorkerEvent.STARTED)
    assert not lifecycle.is_silent(1000.0, 30.0)
    lifecycle.apply(WorkerEvent.READY, 1000.0)
    assert not lifecycle.is_silent(1030.0, 30.0)
    assert lifecycle.is_silent(1031.0, 30.0)
    lifecycle.last_heard = 1031.0
    assert not lifecycle.is_silent(1031.0, 30.0)


@given(st.lists(st.sampled_from(WorkerEvent)))
def test_it_moves_along_the_table_alone(events: list[WorkerEvent]) -> None:
    lifecycle = WorkerLifecycle()
    for event in events:
        before = lifecycle.state
        moved = lifecycle.apply(event, 0.0)
        assert lifecycle.state is TRANSITIONS.get((before, event), before)
        assert moved is ((before, event) in TRANSITIONS)


@pytest.mark.parametrize(("count", "enough"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_half_of_them_are_enough_once_all_have_served(count: int, enough: int) -> None:
    assert quorum(count) == enough
    assert is_ready(enough, count, complete=True)
    assert not is_ready(enough - 1, count, complete=True)
    assert is_ready(enough, count, complete=False) is (enough == count)


def test_one_that_reloads_serves_and_one_that_ends_does_not() -> None:
    assert lived(WorkerEvent.STARTED, WorkerEvent.READY, WorkerEvent.RELOADING).is_serving(0.0)
    assert not lived(WorkerEvent.STARTED, WorkerEvent.READY, WorkerEvent.STOP).is_serving(0.0)


def test_one_that_hangs_does_not_serve_until_it_is_heard_again() -> None:
    lifecycle = lived(WorkerEvent.STARTED, WorkerEvent.READY)
    heard = lifecycle.last_heard
    assert lifecycle.is_serving(heard + 2.0)
    assert not lifecycle.is_serving(heard + 4.0)
    lifecycle.last_heard = heard + 4.0
    assert lifecycle.is_serving(heard + 4.0)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_time_in_which_nothing_could_be_heard_is_no_silence(silent: float, held_up: float) -> None:
    lifecycle = lived(WorkerEvent.STARTED, WorkerEvent.READY)
    now = lifecycle.last_heard + silent + held_up
    lifecycle.forgive(held_up)
    assert not lifecycle.is_silent(now, silent + 1.0)
    assert lifecycle.is_silent(now, silent - 1.0)
