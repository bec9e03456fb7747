"""A model's tuning is in one state for one reason."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from inferd.tuning.record import PHASES, Phase, Record, Standing
from tests.engine import models

EVENTS: dict[str, Callable[[Record], None]] = {
    "put off": lambda r: r.put_off("CPU pressure is 90 %", 30.0),
    "resume": lambda r: r.resume(),
    "ask": lambda r: r.ask(1),
    "tell": lambda r: r.tell("pinned"),
    "drop": lambda r: r.drop("internal error"),
    **{f"move to {phase.value}": lambda r, to=phase: r.move(to) for phase in Phase},  # type: ignore[misc]  # bound now
    **{f"move to {phase.value}, why": lambda r, to=phase: r.move(to, "it has no profile") for phase in Phase},  # type: ignore[misc]
}
WORKING = (Phase.VERIFYING, Phase.SEARCHING, Phase.TRYING)


def record(phase: Phase = Phase.SETTLED) -> Record:
    return Record(models.source(Path("m.xml")), "CPU", Standing(phase))


@given(st.lists(st.sampled_from(sorted(EVENTS))))
def test_nothing_that_goes_on_is_put_off(happened: list[str]) -> None:
    told = record()
    for event in happened:
        # What the table of phases forbids is a bug of the caller, and changes nothing.
        with suppress(AssertionError):
            EVENTS[event](told)
        assert not (told.phase in WORKING and "not now" in told.said), happened
        assert told.standing.busy == (told.phase in WORKING)


def test_the_reason_of_before_is_back_when_the_moment_is_good() -> None:
    told = record()
    told.move(Phase.WANTED, "it has no profile")
    told.put_off("CPU pressure is 90 %", 30.0)
    assert (told.phase, told.said, told.not_before) == (Phase.WANTED, "not now: CPU pressure is 90 %", 30.0)
    told.move(Phase.SEARCHING)
    assert (told.phase, told.said) == (Phase.SEARCHING, "it has no profile")
    told.put_off("memory is short", 60.0)
    assert (told.phase, told.said) == (Phase.WANTED, "not now: memory is short")


def test_what_is_asked_for_is_wanted_at_once_or_when_what_goes_on_has_ended() -> None:
    for phase in PHASES:
        told = record(phase)
        told.not_before = 99.0
        told.ask(7)
        told.ask(8)
        assert told.asked == 7
        if phase in WORKING:
            assert (told.phase, told.not_before) == (phase, 99.0)
        else:
            assert (told.phase, told.said, told.not_before) == (Phase.WANTED, "an operator asked for it", 0.0)
