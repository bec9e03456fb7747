"""A version that lost its device is loaded again at once, then with growing delays, and never abandoned."""

from hypothesis import given
from hypothesis import strategies as st

from inferd.health.reload_backoff import ReloadBackoff, ReloadBackoffRules

RULES = ReloadBackoffRules(first=1.0, fast_tries=4, slow_interval=300.0, stable_after=600.0)


def waits(backoff: ReloadBackoff, count: int, now: float = 0.0) -> list[float]:
    """Seconds between ``count`` tries that all fail, looked for ten times a second."""
    seen, last = [], now
    for _ in range(count):
        while not backoff.due(now):
            now += 0.1
        seen.append(round(now - last))
        last = now
        backoff.tried(now, "no such device")
    return seen


def test_the_first_try_is_at_once_and_each_later_one_waits_twice_as_long_then_slowly() -> None:
    assert waits(ReloadBackoff(RULES), 7) == [0, 1, 2, 4, 300, 300, 300]


def test_what_was_tried_is_told_with_the_last_reason() -> None:
    backoff = ReloadBackoff(RULES)
    assert backoff.status_text == ""
    waits(backoff, 1)
    assert backoff.status_text == "reloading failed once, retrying: no such device"
    waits(backoff, 3, 1.0)
    said = "reloading failed 4 times, next attempts every 300 s: no such device"
    assert backoff.status_text == said
    backoff.tried(1000.0)
    assert backoff.status_text == ""


def test_a_loss_soon_after_a_try_that_worked_goes_on_where_that_left_off() -> None:
    backoff = ReloadBackoff(RULES)
    waits(backoff, 2)
    backoff.tried(10.0)
    assert waits(backoff, 2, now=20.0) == [4, 300]


def test_a_loss_long_after_a_try_that_worked_is_the_first_again() -> None:
    backoff = ReloadBackoff(RULES)
    waits(backoff, 3)
    backoff.tried(10.0)
    assert waits(backoff, 3, now=10.0 + RULES.stable_after) == [0, 1, 2]


@given(st.lists(st.tuples(st.floats(0.0, 50.0), st.booleans()), max_size=40))
def test_whatever_becomes_of_the_tries_they_are_bounded_in_number(steps: list[tuple[float, bool]]) -> None:
    backoff, now, made = ReloadBackoff(RULES), 0.0, 0
    for seconds, works in steps:
        now += seconds
        if backoff.due(now):
            made += 1
            backoff.tried(now, "" if works else "no such device")
            # A device that is lost again and again is not tried more often for having worked in between.
            assert not backoff.due(now)
    assert made <= RULES.fast_tries + now / RULES.slow_interval + 1 + now // RULES.stable_after * RULES.fast_tries
