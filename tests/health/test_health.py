"""A model is ready until observations show otherwise, and again once they no longer do."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.health.health import (
    TRANSITIONS,
    HealthObservation,
    HealthRules,
    HealthSignal,
    HealthState,
    HealthTracker,
    UnreadyReason,
)
from inferd.health.probes import ProbeOutcome, ProbeTrust

RULES = HealthRules(probe_interval=30.0, retry_interval=5.0, probe_timeout=10.0)


class Watched:
    """A model's health, and what is seen of it."""

    def __init__(self, *, trusted: bool = True, rules: HealthRules = RULES) -> None:
        self.now = 0.0
        self.observation = HealthObservation()
        self.health = HealthTracker(rules, self.now)
        if trusted:
            assert self.look()
            self.ended(ProbeOutcome.OK)

    def look(self, seconds: float = 1.0, **more: float | str | None) -> bool:
        """Some time goes by, in which so much more was seen; whether a probe is wanted."""
        self.now += seconds
        counts = {
            name: getattr(self.observation, name) + more.pop(name)
            for name in ("well", "failed", "hung")
            if name in more
        }
        self.observation = replace(self.observation, **counts, **more)  # type: ignore[arg-type]
        return self.health.look(self.now, self.observation) is not None

    def ended(self, outcome: ProbeOutcome, seconds: float = 0.1) -> HealthState:
        self.now += seconds
        self.health.ended(self.now, outcome)
        return self.health.state


# -- the table -------------------------------------------------------------------------


def test_every_sign_has_its_effect_on_every_state() -> None:
    assert set(TRANSITIONS) == set(product(HealthState, HealthSignal))


def test_a_run_that_ends_well_heals_and_nothing_fails_before_it_was_suspect() -> None:
    assert {to for (_, signal), to in TRANSITIONS.items() if signal is HealthSignal.OK} == {HealthState.HEALTHY}
    assert [now for (now, _), to in TRANSITIONS.items() if to is HealthState.FAILED] == [
        HealthState.SUSPECT,
        HealthState.FAILED,
        HealthState.FAILED,
    ]


# -- when a probe is sent -------------------------------------------------------------


def test_a_probe_tells_from_the_start_whether_it_can_be_trusted() -> None:
    watched = Watched(trusted=False)
    assert watched.look()
    assert not watched.look()
    watched.ended(ProbeOutcome.OK)
    assert watched.health.trust is ProbeTrust.TRUSTED
    assert not watched.look()


def test_a_model_that_runs_or_has_run_lately_is_sent_none() -> None:
    watched = Watched()
    for _ in range(100):
        assert not watched.look(well=1)
    for _ in range(100):
        assert not watched.look(busy=True)


def test_a_model_that_had_nothing_to_do_for_a_while_is_sent_one() -> None:
    watched = Watched()
    assert [watched.look() for _ in range(31)].index(True) == 29
    assert not watched.look(100)
    watched.ended(ProbeOutcome.OK)
    assert not watched.look(29)
    assert watched.look(1)


def test_a_model_in_doubt_is_sent_one_soon_even_if_it_is_busy() -> None:
    watched = Watched()
    assert watched.look(hung=1, busy=True) is False  # the last was only a second ago
    assert watched.look(5, busy=True)
    watched.ended(ProbeOutcome.UNANSWERED)
    assert not watched.look(4)
    assert watched.look(1)


def test_no_model_is_sent_any_where_they_are_switched_off() -> None:
    watched = Watched(trusted=False, rules=replace(RULES, probe_interval=0.0))
    assert not any(watched.look(100, hung=1) for _ in range(10))


# -- what they say ---------------------------------------------------------------------


def test_a_probe_that_fails_makes_suspect_and_the_next_that_does_fails_the_model() -> None:
    watched = Watched()
    assert watched.look(40)
    assert watched.ended(ProbeOutcome.FAILED) is HealthState.SUSPECT
    assert watched.look(5)
    assert watched.ended(ProbeOutcome.FAILED) is HealthState.FAILED
    assert watched.health.reason == "health probes fail that succeeded before"


def test_a_probe_that_has_no_answer_while_nothing_else_has_says_the_same() -> None:
    watched = Watched()
    assert watched.look(40)
    assert watched.ended(ProbeOutcome.UNANSWERED, seconds=10.0) is HealthState.SUSPECT
    assert watched.look(5)
    assert watched.ended(ProbeOutcome.UNANSWERED, seconds=10.0) is HealthState.FAILED
    assert watched.health.reason == "no response to a health probe for 10 s"


def test_a_probe_that_found_no_room_or_others_in_its_way_says_nothing() -> None:
    watched = Watched()
    assert watched.look(40)
    assert watched.ended(ProbeOutcome.UNANSWERED, seconds=0.1) is HealthState.HEALTHY
    assert watched.look(40)
    watched.look(9.9, well=1)
    assert watched.ended(ProbeOutcome.UNANSWERED) is HealthState.HEALTHY


def test_a_slow_model_gets_more_time_for_it() -> None:
    watched = Watched()
    assert watched.look(40, run=2.0)
    assert watched.ended(ProbeOutcome.UNANSWERED, seconds=35.0) is HealthState.HEALTHY
    assert watched.look(40)
    assert watched.ended(ProbeOutcome.UNANSWERED, seconds=40.0) is HealthState.SUSPECT


def test_a_model_that_never_ran_on_made_up_input_is_not_judged_by_it() -> None:
    watched = Watched(trusted=False)
    assert watched.look()
    assert watched.ended(ProbeOutcome.FAILED) is HealthState.HEALTHY
    assert not any(watched.look(100, failed=3) for _ in range(10))
    assert watched.health.state is HealthState.SUSPECT


def test_a_model_that_has_failed_is_well_again_once_a_probe_is() -> None:
    watched = Watched()
    for _ in range(2):
        assert watched.look(40)
        watched.ended(ProbeOutcome.FAILED)
    assert watched.look(5)
    assert watched.ended(ProbeOutcome.OK) is HealthState.HEALTHY
    assert watched.health.reason == ""


# -- what real runs say ----------------------------------------------------------------


def test_a_few_runs_in_a_row_that_fail_make_suspect_and_no_number_of_them_fails_the_model() -> None:
    watched = Watched()
    watched.look(failed=2)
    assert watched.health.state is HealthState.HEALTHY
    watched.look(failed=1)
    assert (watched.health.state, watched.health.reason) == (HealthState.SUSPECT, "3 runs in a row failed")
    for _ in range(100):
        if watched.look(failed=1000):
            watched.ended(ProbeOutcome.UNANSWERED)
    assert watched.health.state is HealthState.SUSPECT


def test_runs_that_fail_among_others_that_end_well_are_their_clients_business() -> None:
    watched = Watched()
    for _ in range(100):
        watched.look(failed=10, well=1)
    assert watched.health.state is HealthState.HEALTHY


def test_a_hang_makes_suspect_until_a_run_ends_well() -> None:
    watched = Watched()
    watched.look(hung=1)
    assert (watched.health.state, watched.health.reason) == (HealthState.SUSPECT, "a run hung")
    watched.look(well=1)
    assert (watched.health.state, watched.health.reason) == (HealthState.HEALTHY, "")


def test_a_model_without_a_device_has_failed_and_nothing_heals_it() -> None:
    watched = Watched()
    watched.look(gone="GPU: lost")
    assert (watched.health.state, watched.health.reason) == (HealthState.FAILED, "GPU: lost")
    assert not any(watched.look(100, well=1) for _ in range(10))
    assert watched.health.state is HealthState.FAILED


# -- runs that hold everything ---------------------------------------------------------


def test_a_model_that_can_run_nothing_is_not_ready_after_a_moment_and_is_once_it_can() -> None:
    watched = Watched()
    watched.look(hung=1, busy=True, stalled=0.125)
    assert (watched.health.unready_text, watched.health.unready_reason) == ("", None)
    assert watched.health.until_unready == 0.375
    watched.look(stalled=0.5)
    assert watched.health.unready_text == "hung runs hold all of its infer requests"
    assert watched.health.unready_reason is UnreadyReason.HANGING
    assert watched.health.until_unready is None
    watched.look(stalled=None)
    assert (watched.health.unready_text, watched.health.unready_reason, watched.health.until_unready) == (
        "",
        None,
        None,
    )


def test_what_it_has_failed_of_is_told_apart() -> None:
    seen = {}
    for outcome in (ProbeOutcome.FAILED, ProbeOutcome.UNANSWERED):
        watched = Watched()
        for _ in range(2):
            assert watched.look(40)
            assert watched.health.unready_reason is None
            watched.ended(outcome, seconds=10.0)
        seen[outcome] = watched.health.unready_reason
        assert watched.health.unready_text == watched.health.reason
    for hangs in (False, True):
        watched = Watched()
        watched.look(gone="GPU: lost", hangs=hangs)
        seen[hangs] = watched.health.unready_reason
    assert list(seen.values()) == [
        UnreadyReason.FAILING,
        UnreadyReason.SILENT,
        UnreadyReason.LOST,
        UnreadyReason.HANGING,
    ]


def test_one_that_has_failed_says_so_and_not_that_it_can_run_nothing() -> None:
    watched = Watched()
    for _ in range(2):
        assert watched.look(40, stalled=60.0)
        watched.ended(ProbeOutcome.FAILED)
    assert watched.health.unready_reason is UnreadyReason.FAILING
    assert watched.look(5)
    watched.ended(ProbeOutcome.OK)
    assert watched.health.unready_reason is UnreadyReason.HANGING


# -- all of it -------------------------------------------------------------------------

LOOKS = st.tuples(
    st.floats(0.1, 60.0), st.integers(0, 2), st.integers(0, 4), st.sampled_from([0, 0, 0, 1]), st.booleans()
)
STEPS = st.lists(LOOKS | st.sampled_from(ProbeOutcome), max_size=60)


@given(STEPS)
def test_whatever_is_seen_it_fails_only_by_probes_and_is_sent_no_more_of_them_than_agreed(
    steps: Sequence[tuple[float, int, int, int, bool] | ProbeOutcome],
) -> None:
    watched, in_flight, asked = Watched(trusted=False), False, -100.0
    bad = 0
    for step in steps:
        if isinstance(step, ProbeOutcome):
            trusted = watched.health.trust is ProbeTrust.TRUSTED
            counts = in_flight and ((step is ProbeOutcome.FAILED and trusted) or step is ProbeOutcome.UNANSWERED)
            before = watched.health.state
            state = watched.ended(step)
            bad = 0 if in_flight and step is ProbeOutcome.OK else bad + counts
            if state is not before:
                assert in_flight
            in_flight = False
        else:
            seconds, well, failed, hung, busy = step
            before = watched.health.state
            wanted = watched.look(seconds, well=well, failed=failed, hung=hung, busy=busy)
            if well:
                bad = 0
                assert watched.health.state is HealthState.HEALTHY
            elif before is not HealthState.FAILED:
                assert watched.health.state is not HealthState.FAILED, "failed by what clients may have done"
            if wanted:
                assert not in_flight
                assert watched.now - asked >= RULES.retry_interval
                assert watched.health.trust is not ProbeTrust.UNTESTABLE
                in_flight, asked = True, watched.now
        assert watched.health.state is not HealthState.FAILED or bad > 0
        assert bool(watched.health.reason) == (watched.health.state is not HealthState.HEALTHY)


@pytest.mark.parametrize("outcome", ProbeOutcome)
def test_a_probe_that_was_not_requested_says_nothing(outcome: ProbeOutcome) -> None:
    watched = Watched()
    assert watched.ended(outcome, seconds=1000.0) is HealthState.HEALTHY
