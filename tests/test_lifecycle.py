"""The daemon and its model versions follow their state tables only."""

from itertools import product

import pytest

from inferd.lifecycle import MODEL_STATES, PHASES, Lifecycle, ModelState, Phase, may_move

PATHS = {
    Phase.STARTING: [],
    Phase.READY: [Phase.READY],
    Phase.DRAINING: [Phase.READY, Phase.DRAINING],
    Phase.STOPPED: [Phase.READY, Phase.DRAINING, Phase.STOPPED],
    Phase.FAILED: [Phase.FAILED],
}


def in_phase(phase: Phase) -> Lifecycle:
    lifecycle = Lifecycle()
    for step in PATHS[phase]:
        lifecycle.move(step)
    return lifecycle


def test_a_daemon_begins_starting() -> None:
    assert Lifecycle().phase is Phase.STARTING


@pytest.mark.parametrize(("now", "to"), list(product(Phase, Phase)))
def test_a_phase_is_entered_where_the_table_says_so_and_refused_elsewhere(now: Phase, to: Phase) -> None:
    lifecycle = in_phase(now)
    if to in PHASES[now]:
        lifecycle.move(to)
        assert lifecycle.phase is to
    else:
        with pytest.raises(RuntimeError, match=f"the daemon can't go from {now.value} to {to.value}"):
            lifecycle.move(to)
        assert lifecycle.phase is now


@pytest.mark.parametrize("phase", Phase)
def test_inferences_are_taken_in_one_phase_only(phase: Phase) -> None:
    assert in_phase(phase).accepts == (phase is Phase.READY)


def test_a_daemon_that_has_ended_stays_so() -> None:
    assert PHASES[Phase.STOPPED] == PHASES[Phase.FAILED] == frozenset()


@pytest.mark.parametrize("table", [PHASES, MODEL_STATES], ids=["daemon", "model"])
def test_every_state_has_its_row_and_can_be_reached(table: dict[object, frozenset[object]]) -> None:
    first = next(iter(table))
    assert set(table) == set(type(first))  # type: ignore[call-overload]
    reached, frontier = {first}, {first}
    while frontier:
        frontier = {to for now in frontier for to in table[now]} - reached
        reached |= frontier
    assert reached == set(table)


def test_a_model_answers_what_it_accepted_before_it_is_gone() -> None:
    assert not may_move(ModelState.READY, ModelState.UNAVAILABLE)
    assert may_move(ModelState.READY, ModelState.UNLOADING)
    assert may_move(ModelState.UNLOADING, ModelState.UNAVAILABLE)


def test_a_model_is_ready_only_after_loading() -> None:
    assert [now for now in ModelState if may_move(now, ModelState.READY)] == [ModelState.LOADING]
