"""The scheduler's decisions, case by case; test_random_walks.py checks its promises in general."""

import gc
import weakref
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.errors import DeadlinePassed, InferdError, QueueFull, SustainedOverload
from inferd.requests import Request
from inferd.scheduling.entry import Entry, Run
from inferd.scheduling.objective import Objective
from inferd.scheduling.rules import PoolSpec, QueueLimits, SchedulerRules
from inferd.scheduling.scheduler import Scheduler
from tests.scheduling.work import work

ROOM = QueueLimits(1000, 1_000_000)


def scheduler(*pools: tuple[int, float], limits: QueueLimits = ROOM) -> Scheduler:
    """A scheduler over pools of (slots, known service time)."""
    made = Scheduler("m", SchedulerRules(limits), [PoolSpec(slots) for slots, _ in pools])
    for index, (_, service_time) in enumerate(pools):
        made.seed(index, [(1, service_time)])
    return made


def submit(to: Scheduler, count: int, now: int = 0) -> list[Request]:
    requests = [work() for _ in range(count)]
    for request in requests:
        to.submit(request, now)
    return requests


def places(starts: list[Run]) -> list[tuple[Request, int, int]]:
    return [(run.members[0].request, run.pool, run.slot) for run in starts]


def answered(ended: list[Entry]) -> list[Request]:
    return [entry.request for entry in ended]


def pools_of(starts: list[Run]) -> list[int]:
    return [start.pool for start in starts]


# -- one pool ------------------------------------------------------------------------


def test_requests_start_in_the_order_they_came() -> None:
    one = scheduler((2, 10))
    requests = submit(one, 3)

    assert [run.members[0].request for run in one.poll(0).starts] == requests[:2]
    assert answered(one.finished(0, 1, 10)) == [requests[1]]
    assert places(one.poll(10).starts) == [(requests[2], 0, 1)]


def test_a_lower_priority_number_goes_first_and_none_at_all_goes_last() -> None:
    one = scheduler((4, 10))
    asked = [work(priority=p) for p in (0, 2, 1, 2**64 - 1)]
    for request in asked:
        one.submit(request, 0)

    assert [run.members[0].request.priority for run in one.poll(0).starts] == [1, 2, 2**64 - 1, 0]


def test_a_full_queue_says_how_long_it_takes_to_get_through_it() -> None:
    one = scheduler((2, 1e9), limits=QueueLimits(4, 1000))
    submit(one, 2)
    one.poll(0)
    submit(one, 4)

    with pytest.raises(QueueFull, match=r"4 requests waiting.*retry in 2000 ms") as refused:
        one.submit(work(), 0)
    assert refused.value.retry_after == pytest.approx(2.0)


def test_the_wait_counts_the_slots_of_every_pool_by_its_own_speed() -> None:
    # Four a second and half a one: 4.5 a second together, and nine wait.
    two = scheduler((2, 0.5e9), (1, 2e9))
    submit(two, 9)
    assert two.backlog_seconds() == pytest.approx(2.0)


def test_nobody_is_told_a_time_before_anything_was_measured() -> None:
    one = scheduler((1, 0), limits=QueueLimits(1, 1000))
    submit(one, 1)
    with pytest.raises(QueueFull) as refused:
        one.submit(work(), 0)
    assert refused.value.retry_after == 0.0


def test_a_queue_holds_no_more_bytes_than_its_limit() -> None:
    one = scheduler((1, 10), limits=QueueLimits(10, 100))
    one.submit(work(nbytes=60), 0)
    with pytest.raises(QueueFull, match="100 bytes waiting"):
        one.submit(work(nbytes=41), 0)
    one.submit(work(nbytes=40), 0)
    assert one.waiting == 2


def test_our_own_requests_teach_nothing_about_those_of_clients() -> None:
    one = scheduler((1, 0))
    for shadow, took in ((True, 5), (False, 1000), (True, 5)):
        request = work()
        request.shadow = shadow
        one.submit(request, 0)
        one.poll(0)
        one.finished(0, 0, took)
    assert one.service_time == 1000


def test_what_waits_and_what_is_in_flight_is_told() -> None:
    one = scheduler((1, 10))
    requests = [work(nbytes=n, received=n) for n in (3, 5, 7)]
    for request in requests:
        one.submit(request, 10)
    one.poll(10)
    assert (one.waiting, one.waiting_bytes, one.oldest, one.in_flight) == (2, 12, 5, 3)
    one.cancel(requests[1], 11)
    assert (one.waiting, one.waiting_bytes, one.oldest, one.in_flight) == (1, 7, 7, 2)
    one.finished(0, 0, 12)
    one.poll(12)
    assert (one.waiting, one.waiting_bytes, one.oldest, one.in_flight) == (0, 0, 0, 1)


def test_a_request_larger_than_the_queue_is_taken_where_it_need_not_wait() -> None:
    one = scheduler((1, 10), limits=QueueLimits(10, 100))
    one.submit(work(nbytes=101), 0)
    assert len(one.poll(0).starts) == 1


def test_a_deadline_that_has_passed_is_refused_and_leaves_nothing_behind() -> None:
    one = scheduler((1, 10))
    with pytest.raises(DeadlinePassed):
        one.submit(work(deadline=5), 5)
    assert one.idle


def test_a_request_that_expires_while_it_runs_is_answered_and_its_run_cancelled() -> None:
    one = scheduler((1, 0))
    request = work(deadline=7)
    one.submit(request, 0)
    assert one.poll(0).wake_at == 7

    plan = one.poll(7)
    assert [(r, str(e)) for r, e in plan.refused] == [
        (request, "model 'm': deadline passed while the request was running")
    ]
    assert plan.cancels == [(0, 0)]
    # Its slot is not free until the run has really ended.
    submit(one, 1)
    assert not one.poll(8).starts
    assert one.finished(0, 0, 9) == []
    assert len(one.poll(9).starts) == 1


def test_a_request_that_expires_in_the_queue_never_starts() -> None:
    one = scheduler((1, 0))
    submit(one, 1)
    one.poll(0)
    late = work(deadline=5)
    one.submit(late, 0)

    plan = one.poll(6)
    assert [(r, str(e)) for r, e in plan.refused] == [
        (late, "model 'm': deadline passed while the request was waiting in the queue")
    ]
    assert not plan.cancels
    one.finished(0, 0, 10)
    assert not one.poll(10).starts


def test_cancelling_twice_says_that_it_had_ended() -> None:
    one = scheduler((1, 10))
    (request,) = submit(one, 1)
    assert one.cancel(request, 0)
    assert not one.cancel(request, 0)
    assert not one.cancel(work(), 0)


def test_the_time_of_cancelled_and_failed_work_is_not_learnt() -> None:
    one = scheduler((1, 1e9))
    (cancelled, _, _) = submit(one, 3)
    one.poll(0)
    one.cancel(cancelled, 0)
    one.finished(0, 0, 1)
    one.poll(1)
    one.finished(0, 0, 2, ok=False)
    assert one.backlog_seconds() == pytest.approx(1.0)


def test_an_ended_request_is_not_kept_in_memory_by_its_deadline() -> None:
    # Earlier deadlines of requests in flight keep later ones of ended requests in the heap.
    one = scheduler((2, 10))
    held = work(deadline=1000)
    ended = [work(deadline=2000), work(deadline=2000)]
    for request in (held, *ended):
        one.submit(request, 0)
    one.poll(0)
    assert answered(one.finished(0, 1, 5)) == [ended[0]]
    assert one.cancel(ended[1], 5)
    one.poll(5)
    replies = [weakref.ref(request.reply) for request in ended]

    ended.clear()
    del request
    gc.collect()

    assert [reply() for reply in replies] == [None, None]


def test_deadlines_of_ended_requests_do_not_pile_up() -> None:
    one = scheduler((2, 10))
    one.submit(work(deadline=10**6), 0)
    one.poll(0)
    for now in range(1, 5000):
        one.submit(work(deadline=10**6 + now), now)
        (start,) = one.poll(now).starts
        one.finished(start.pool, start.slot, now)
    assert len(one._deadlines) <= 2 * 1 + 64 + 1


def test_deadlines_still_come_in_their_order_after_ended_ones_were_cleared_out() -> None:
    one = scheduler((1, 0))
    deadlines = [(n * 7919) % 1009 + 10 for n in range(300)]
    requests = [work(deadline) for deadline in deadlines]
    for request in requests:
        one.submit(request, 0)
    for request in requests[::2] + requests[1::4]:
        one.cancel(request, 0)
    one.poll(0)
    assert len(one._deadlines) < 300

    kept = sorted(deadlines[3::4])
    seen = [request.deadline for now in range(max(kept) + 1) for request, _ in one.poll(now).refused]
    assert seen == kept


# -- several pools -------------------------------------------------------------------


def test_a_request_goes_to_the_pool_that_is_done_with_it_first() -> None:
    two = scheduler((1, 100), (1, 10))
    submit(two, 1)
    assert pools_of(two.poll(0).starts) == [1]


def test_a_request_waits_for_the_fast_pool_rather_than_start_at_once_on_the_slow() -> None:
    two = scheduler((1, 10), (1, 100))
    submit(two, 2)

    assert pools_of(two.poll(0).starts) == [0]
    two.finished(0, 0, 10)
    assert pools_of(two.poll(10).starts) == [0]


def test_a_slow_pool_takes_what_the_fast_one_would_not_be_done_with_by_then() -> None:
    # The fast slot does 9 more within the 100 that the slow one needs for its first.
    two = scheduler((1, 10), (1, 100))
    requests = submit(two, 12)

    starts = two.poll(0).starts
    assert places(starts) == [(requests[0], 0, 0), (requests[10], 1, 0)]


def test_both_pools_work_if_they_are_equally_fast() -> None:
    two = scheduler((1, 10), (1, 10))
    submit(two, 2)
    assert pools_of(two.poll(0).starts) == [0, 1]


def test_an_unmeasured_pool_is_tried() -> None:
    two = scheduler((1, 10), (1, 0))
    submit(two, 1)
    assert pools_of(two.poll(0).starts) == [1]


def test_a_fast_pool_that_hangs_does_not_hold_the_queue_for_ever() -> None:
    two = scheduler((1, 10), (1, 100))
    submit(two, 2)
    plan = two.poll(0)
    looks = 0
    while pools_of(plan.starts) != [1]:
        assert plan.wake_at is not None
        plan = two.poll(plan.wake_at)
        looks += 1
        assert looks < 5


def test_the_next_look_is_for_the_first_of_the_idle_pools_that_may_be_needed() -> None:
    three = scheduler((1, 10), (1, 100), (1, 1000))
    submit(three, 2)
    assert three.poll(0).wake_at == 100


# -- deadlines -------------------------------------------------------------------------

MS = 1_000_000
SECOND = 1_000 * MS


def test_a_deadline_nearer_than_the_fastest_run_is_refused_until_that_is_stale() -> None:
    one = scheduler((1, 100 * MS))
    submit(one, 1, SECOND)
    (run,) = one.poll(SECOND).starts
    at = SECOND + 100 * MS
    one.finished(run.pool, run.slot, at)
    with pytest.raises(DeadlinePassed, match=r"50\.0 ms are left, a response takes 100\.0 ms"):
        one.submit(work(deadline=at + 50 * MS), at)
    # Nothing has run for long: the model may have become faster.
    at += 2 * SECOND
    request = work(deadline=at + 50 * MS)
    one.submit(request, at)
    (run,) = one.poll(at).starts
    assert answered(one.finished(run.pool, run.slot, at + 10 * MS)) == [request]
    one.submit(work(deadline=at + 60 * MS), at + 11 * MS)


def test_a_slow_measurement_is_stale_also_for_requests_that_took_long_to_arrive() -> None:
    one = scheduler((1, 100 * MS))
    at = 5 * SECOND
    request = work(deadline=at + 80 * MS, received=at - 20 * MS)
    one.submit(request, at)
    (run,) = one.poll(at).starts
    assert answered(one.finished(run.pool, run.slot, at + 5 * MS)) == [request]


def test_no_measurement_is_stale_while_a_run_is_in_flight() -> None:
    one = scheduler((2, 100 * MS))
    submit(one, 1, SECOND)
    one.poll(SECOND)
    with pytest.raises(DeadlinePassed):
        one.submit(work(deadline=9 * SECOND + 50 * MS), 9 * SECOND)


def test_a_run_that_outlasts_its_client_teaches_that_runs_take_at_least_as_long() -> None:
    one = scheduler((1, 10 * MS))
    for number in range(50):
        at = number * SECOND
        one.submit(work(deadline=at + 80 * MS), at)
        (run,) = one.poll(at).starts
        one.poll(at + 80 * MS)
        one.finished(run.pool, run.slot, at + 300 * MS)
    assert one.service_time == pytest.approx(80 * MS, rel=0.05)


def test_a_client_that_leaves_early_teaches_nothing() -> None:
    one = scheduler((1, 10 * MS))
    (request,) = submit(one, 1)
    one.poll(0)
    one.cancel(request, 5 * MS)
    assert one.service_time == 10 * MS


def test_the_sooner_deadline_goes_first_and_a_priority_goes_before_it() -> None:
    one = scheduler((1, MS))
    asked = [work(deadline=d * SECOND, priority=p) for d, p in ((9, 0), (3, 0), (8, 1), (5, 0))]
    for request in asked:
        one.submit(request, 0)
    order = []
    for at in range(4):
        (run,) = one.poll(at * MS).starts
        order += answered(one.finished(run.pool, run.slot, (at + 1) * MS))
    assert order == [asked[2], asked[1], asked[3], asked[0]]


def test_a_request_that_would_miss_its_deadline_is_refused_before_it_waits() -> None:
    one = scheduler((1, 10 * MS))
    submit(one, 1)
    one.poll(0)
    for _ in range(7):
        one.submit(work(deadline=100 * MS), 0)
    with pytest.raises(DeadlinePassed, match=r"refused: 100\.0 ms are left"):
        one.submit(work(deadline=100 * MS), 0)
    one.submit(work(deadline=200 * MS), 0)


def test_under_sustained_overload_patient_requests_get_an_overload_error() -> None:
    one = scheduler((1, 10 * MS))
    told: set[tuple[str, bool]] = set()
    begun = now = SECOND
    for number in range(2000):
        now += 3 * MS
        patient = number % 2 == 0
        try:
            one.submit(work(deadline=now + (800 * MS if patient else 50 * MS)), now)
        except (SustainedOverload, DeadlinePassed) as refusal:
            told.add((refusal.reason, patient))
        if one.running and now - begun >= 10 * MS:
            one.finished(0, 0, now)
        if one.poll(now).starts:
            begun = now
    assert ("overload", True) in told
    assert told <= {("overload", True), ("forecast", True), ("forecast", False)}


def test_a_request_refused_for_overload_is_told_when_to_retry() -> None:
    crowded = SustainedOverload("m", 0.2, 0.05, retry_after=0.15)
    assert crowded.retry_after == 0.15
    assert "a response would take 200 ms" in str(crowded)
    assert "under sustained overload the queue is limited to 50 ms" in str(crowded)


# -- calls whose message has not been received ---------------------------------------------


def unread(one: Scheduler, now: int, deadline: int | None = None) -> str:
    error = one.refusal_unread(work(deadline=deadline, received=now), now)
    return "" if error is None else type(error).__name__


def test_a_call_is_judged_unread_as_its_request_would_be() -> None:
    one = scheduler((1, 10), limits=QueueLimits(3, 1_000_000))
    assert unread(one, 5) == ""
    submit(one, 1, 5)
    one.poll(5)
    assert unread(one, 5, deadline=5) == "DeadlinePassed"
    assert unread(one, 5) == ""
    submit(one, 3, 5)
    assert unread(one, 5) == "QueueFull"
    with pytest.raises(QueueFull):
        submit(one, 1, 5)
    assert one.waiting == 3


def full() -> Scheduler:
    """A scheduler whose queue is full."""
    one = scheduler((1, 10), limits=QueueLimits(3, 1_000_000))
    submit(one, 1)
    one.poll(0)
    submit(one, 3)
    return one


def test_a_few_are_received_all_the_same() -> None:
    one = full()
    assert [unread(one, 0) for _ in range(64)].count("") == 4


def test_once_a_request_had_a_priority_all_are_received() -> None:
    one = full()
    assert unread(one, 0) == "QueueFull"
    one.submit(work(priority=1), 0)
    assert unread(one, 0) == ""


@given(
    slots=st.integers(1, 3),
    objective=st.sampled_from([None, 30, 200]),
    gaps=st.lists(st.integers(0, 15), max_size=60),
    patience=st.lists(st.none() | st.integers(-5, 300), min_size=1, max_size=5),
)
def test_what_is_refused_unread_would_have_been_refused(
    slots: int, objective: int | None, gaps: list[int], patience: list[int | None]
) -> None:
    rules = SchedulerRules(QueueLimits(8, 1_000_000), objective=Objective(objective) if objective else None)
    one, now = Scheduler("m", rules, [PoolSpec(slots)]), 1
    one.seed(0, [(1, 10.0)])
    for number, gap in enumerate(gaps):
        now += gap
        left = patience[number % len(patience)]
        deadline = None if left is None else now + left
        judged, request = unread(one, now, deadline), work(deadline=deadline, received=now)
        if judged:
            with pytest.raises(InferdError) as refused:
                one.submit(request, now)
            assert type(refused.value).__name__ == judged
        else:
            with suppress(InferdError):
                one.submit(request, now)
        for run in one.poll(now).starts:
            if number % 3:
                one.finished(run.pool, run.slot, now + 9)
