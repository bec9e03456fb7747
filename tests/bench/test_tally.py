"""The counts of one window, by due time or by response time."""

from hypothesis import given, settings
from hypothesis import strategies as st

from inferd.bench.latencies import Latencies
from inferd.bench.tally import OK, UNANSWERED, LoadWindow, RequestTally
from tests.effort import examples

OPENS, CLOSES, OBJECTIVE = 1000, 2000, 100
codes = st.sampled_from([OK, "RESOURCE_EXHAUSTED", UNANSWERED])
ended = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 500), codes), max_size=60)


def counted(*requests: tuple[int, int, str]) -> LoadWindow:
    tally = RequestTally(OPENS, CLOSES, OBJECTIVE)
    for due, latency, code in requests:
        tally.ended(due, due + latency, code)
    return tally.window(0.5)


def test_an_answer_counts_in_the_rates_when_it_came_in_the_window() -> None:
    window = counted((900, 150, OK), (1990, 20, OK), (1500, 50, OK))
    # The first was due before the window, the second arrived after it.
    assert (window.answered, window.answered_in_time) == (2, 1)
    assert window.throughput == 2 / 1e-6
    assert window.goodput == 1 / 1e-6


def test_a_latency_counts_when_its_request_was_due_in_the_window() -> None:
    window = counted((900, 150, OK), (1990, 20, OK), (1500, 150, OK))
    assert window.latencies == Latencies.of([20, 150])
    assert (window.due, window.in_time) == (2, 1)


def test_errors_are_not_latencies_and_not_in_time() -> None:
    window = counted((1000, 1, "UNAVAILABLE"), (1000, 1, OK), (1000, 1, UNANSWERED), (1000, 2, UNANSWERED))
    assert window.errors == {"UNAVAILABLE": 1, UNANSWERED: 2}
    assert (window.due, window.latencies.count) == (4, 1)
    assert window.share_in_time == 0.25


def test_an_answer_just_within_the_objective_is_in_time() -> None:
    assert counted((1000, OBJECTIVE, OK), (1000, OBJECTIVE + 1, OK)).in_time == 1


def test_without_requests_the_share_is_zero() -> None:
    window = counted()
    assert (window.share_in_time, window.throughput, window.errors) == (0.0, 0.0, {})


def test_how_late_requests_left_is_known_for_those_of_the_window() -> None:
    tally = RequestTally(OPENS, CLOSES, OBJECTIVE)
    for due, left in ((999, 1200), (1000, 1003), (2000, 2001)):
        tally.left(due, left)
    assert tally.window(0.0).lags == Latencies.of([3])


@settings(max_examples=examples(25))
@given(requests=ended, early=st.integers(OPENS, CLOSES))
def test_a_window_closed_early_is_the_window_of_that_length(requests: list[tuple[int, int, str]], early: int) -> None:
    shorter, moved = RequestTally(OPENS, early, OBJECTIVE), RequestTally(OPENS, CLOSES, OBJECTIVE)
    # As they happen; no request begins after the window was closed.
    for due, latency, code in sorted(requests, key=lambda r: r[0] + r[1]):
        if due < early:
            if due + latency >= early:
                moved.closes = early
            shorter.ended(due, due + latency, code)
            moved.ended(due, due + latency, code)
    moved.closes = early
    assert moved.window(0.0) == shorter.window(0.0)


@settings(max_examples=examples(25))
@given(requests=ended, places=st.lists(st.integers(0, 2), min_size=60, max_size=60))
def test_windows_of_several_processes_add_up_to_that_of_one(
    requests: list[tuple[int, int, str]], places: list[int]
) -> None:
    parts = [counted(*(r for r, place in zip(requests, places, strict=False) if place == part)) for part in range(3)]
    whole, merged = counted(*requests), LoadWindow.merged(parts)
    assert merged.codes == whole.codes
    assert (merged.answered, merged.answered_in_time, merged.in_time) == (
        whole.answered,
        whole.answered_in_time,
        whole.in_time,
    )
    assert merged.latencies.quantiles((50, 99)) == whole.latencies.quantiles((50, 99))
    assert (merged.seconds, merged.cpu, merged.busiest) == (whole.seconds, 1.5, 0.5)
