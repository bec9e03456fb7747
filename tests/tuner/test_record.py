"""A model's tuning is in one state for one reason."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from inferd.tuner.record import TUNING_PHASES, TuningPhase, TuningRecord, TuningStatus
from tests.engine import models

EVENTS: dict[str, Callable[[TuningRecord], None]] = {
    "put off": lambda r: r.postpone("CPU pressure is 90 %", 30.0),
    "resume": lambda r: r.resume(),
    "ask": lambda r: r.request(1),
    "tell": lambda r: r.note("pinned"),
    "drop": lambda r: r.cancel("internal error"),
    **{f"move to {phase.value}": lambda r, to=phase: r.move(to) for phase in TuningPhase},  # type: ignore[misc]  # bound now
    **{f"move to {phase.value}, why": lambda r, to=phase: r.move(to, "it has no profile") for phase in TuningPhase},  # type: ignore[misc]
}
WORKING = (TuningPhase.VERIFYING, TuningPhase.SEARCHING, TuningPhase.TRYING)


def record(phase: TuningPhase = TuningPhase.SETTLED) -> TuningRecord:
    return TuningRecord(models.source(Path("m.xml")), "CPU", TuningStatus(phase))


@given(st.lists(st.sampled_from(sorted(EVENTS))))
def test_nothing_that_goes_on_is_put_off(happened: list[str]) -> None:
    told = record()
    for event in happened:
        # What the table of phases forbids is a bug of the caller, and changes nothing.
        with suppress(AssertionError):
            EVENTS[event](told)
        assert not (told.phase in WORKING and "not now" in told.status_text), happened
        assert told.status.busy == (told.phase in WORKING)


def test_the_reason_of_before_is_back_when_the_moment_is_good() -> None:
    told = record()
    told.move(TuningPhase.WANTED, "it has no profile")
    told.postpone("CPU pressure is 90 %", 30.0)
    assert (told.phase, told.status_text, told.not_before) == (
        TuningPhase.WANTED,
        "not now: CPU pressure is 90 %",
        30.0,
    )
    told.move(TuningPhase.SEARCHING)
    assert (told.phase, told.status_text) == (TuningPhase.SEARCHING, "it has no profile")
    told.postpone("memory is short", 60.0)
    assert (told.phase, told.status_text) == (TuningPhase.WANTED, "not now: memory is short")


def test_what_is_asked_for_is_wanted_at_once_or_when_what_goes_on_has_ended() -> None:
    for phase in TUNING_PHASES:
        told = record(phase)
        told.not_before = 99.0
        told.request(7)
        told.request(8)
        assert told.ticket == 7
        if phase in WORKING:
            assert (told.phase, told.not_before) == (phase, 99.0)
        else:
            assert (told.phase, told.status_text, told.not_before) == (
                TuningPhase.WANTED,
                "requested by an operator",
                0.0,
            )
