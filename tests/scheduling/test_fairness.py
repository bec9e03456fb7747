"""Models that share a device get their shares of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.scheduling.fairness import LEAD, Share, SharedDevice

MS = 1_000_000


def device_time(shares: list[Share], durations: list[int], start: int, end: int) -> list[float]:
    """Nanoseconds of the whole device each share gets while all want to run, one run each at a time."""
    ends: dict[int, int] = {}
    had, now = [0.0] * len(shares), start
    for share in shares:
        share.want(True, now)
    while now < end:
        for index, share in enumerate(shares):
            if index not in ends and share.may_start(now):
                share.started(now)
                ends[index] = now + durations[index]
        following = min(ends.values())
        for index in ends:
            had[index] += (following - now) / len(ends)
        now = following
        for index in [i for i, at in ends.items() if at == now]:
            del ends[index]
            shares[index].ended(now)
    for index in ends:
        shares[index].ended(now)
    return had


@pytest.mark.parametrize("durations", [[5 * MS, 5 * MS], [2 * MS, 9 * MS], [9 * MS, 2 * MS]])
def test_two_backlogged_models_get_device_time_by_their_weights(durations: list[int]) -> None:
    device = SharedDevice()
    three, one = device_time([device.join(3, 1), device.join(1, 1)], durations, 0, 20_000 * MS)
    assert three / one == pytest.approx(3, rel=0.05)


def test_a_model_is_never_held_back_while_no_other_waits() -> None:
    device = SharedDevice()
    busy, _ = device.join(1, 0.5), device.join(100, 1)
    busy.want(True, 0)
    for now in range(0, 100 * LEAD, LEAD):
        assert busy.may_start(now)
        busy.started(now)


def test_idling_earns_no_credit() -> None:
    device = SharedDevice()
    early, late = device.join(1, 1), device.join(1, 1)
    device_time([early], [5 * MS], 0, 10_000 * MS)
    first, second = device_time([early, late], [5 * MS, 5 * MS], 10_000 * MS, 20_000 * MS)
    assert first == pytest.approx(second, rel=0.05)


def test_a_model_that_was_held_back_is_woken_when_its_turn_comes() -> None:
    device = SharedDevice()
    ahead, behind = device.join(1, 1), device.join(1, 1)
    woken: list[str] = []
    ahead.wake = lambda: woken.append("ahead")
    ahead.want(True, 0)
    behind.want(True, 0)
    ahead.started(0)
    assert not ahead.may_start(2 * LEAD)
    ahead.ended(2 * LEAD)
    behind.started(2 * LEAD)
    behind.ended(4 * LEAD)
    assert not woken
    behind.wake_others(4 * LEAD)
    assert woken == ["ahead"]


def test_a_model_removed_with_an_unfinished_run_leaves_the_device_to_the_others() -> None:
    device = SharedDevice()
    gone, greedy, modest = device.join(1, 1), device.join(1e-6, 0.5), device.join(1, 0.5)
    gone.started(0)
    greedy.started(0)
    greedy.ended(100 * MS)
    modest.want(True, 100 * MS)
    assert not greedy.may_start(100 * MS)
    gone.leave()
    assert greedy.may_start(100 * MS)
    assert gone.runs == 0


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50 * MS), st.integers(0, 50 * MS)), max_size=20), st.booleans()
)
def test_an_inline_run_counts_like_one_recorded_at_its_start_and_end(
    runs: list[tuple[int, int, int]], together: bool
) -> None:
    at_once, step_by_step = SharedDevice(), SharedDevice()
    ones = [at_once.join(weight, 0.5) for weight in (1, 2, 3)]
    others = [step_by_step.join(weight, 0.5) for weight in (1, 2, 3)]
    if together:
        ones[0].started(0)
        others[0].started(0)
    now = 0
    for index, idle, took in runs:
        began, now = now + idle, now + idle + took
        ones[index].record_inline(began, now)
        others[index].started(began)
        others[index].ended(now)
    assert [one.used for one in ones] == pytest.approx([other.used for other in others])
    assert at_once.clock == pytest.approx(step_by_step.clock)
