"""A hung run is given up, its requests fail, and its slot must be replaced."""

import pytest

from inferd.errors import InferenceFailed, SequenceLost
from inferd.requests import Request, SequenceStep
from inferd.scheduling.batching import BatchRule
from inferd.scheduling.entry import Run
from inferd.scheduling.fairness import SharedDevice
from inferd.scheduling.hangs import HangDetector, HangRule, HungSlots
from inferd.scheduling.rules import PoolSpec, QueueLimits, SchedulerRules
from inferd.scheduling.scheduler import Plan, Scheduler
from inferd.scheduling.sequences import SequenceLimits
from inferd.scheduling.service_time import ServiceTimes
from tests.scheduling.work import work

SECOND = 1_000_000_000
LIMITS = QueueLimits(100, 1 << 20)


def times(*seen: int) -> ServiceTimes:
    learnt = ServiceTimes()
    for duration in seen:
        learnt.learn(1, duration)
    return learnt


class Stage:
    """A scheduler that gives runs up after 100 and waits 10 after the cancel, polled when it asks for it."""

    def __init__(self, *pool_specs: PoolSpec, rules: SchedulerRules | None = None) -> None:
        rules = rules or SchedulerRules(LIMITS, hangs=HangRule(100, 10))
        self.scheduler = Scheduler("m", rules, pool_specs or (PoolSpec(1),))
        self.errors: dict[Request, str] = {}

    def submit(self, *requests: Request, now: int = 0) -> Plan:
        for request in requests:
            self.scheduler.submit(request, now)
        return self.poll(now)

    def poll(self, now: int) -> Plan:
        plan = self.scheduler.poll(now)
        self.errors |= {request: type(error).__name__ for request, error in plan.refused}
        return plan

    def follow(self, until: int) -> list[Plan]:
        """The plans at each time that the scheduler asks for, up to ``until``."""
        plans, now = [self.poll(1)], 1
        while (at := plans[-1].wake_at) is not None and at <= until:
            assert at > now
            plans.append(self.poll(now := at))
        return plans


# -- how long a run may take -----------------------------------------------------------


def test_a_run_may_take_the_time_of_the_rule() -> None:
    assert HangRule(5).allowed(times(SECOND), 1) == 5


def test_by_default_a_run_may_take_a_minute() -> None:
    assert HangRule().allowed(times(), 1) == HangRule().allowed(times(SECOND), 1) == 60 * SECOND


def test_by_default_a_slow_model_may_take_many_times_its_slowest_run() -> None:
    assert HangRule().allowed(times(SECOND, 10 * SECOND, SECOND), 1) == pytest.approx(200 * SECOND, rel=0.02)


def test_by_default_many_rows_may_take_as_many_times_longer() -> None:
    assert HangRule().allowed(times(4 * SECOND), 8) == 20 * 8 * 4 * SECOND


# -- the steps -------------------------------------------------------------------------


def test_a_run_is_given_up_once_and_then_reported_until_it_has_ended() -> None:
    hangs, run = HangDetector(HangRule(100, 10)), Run(0, 0, (), 0)
    hangs.begun(run, times(), 1000)
    seen = []
    for _ in range(5):
        assert hangs.due is not None
        now = hangs.due
        hung = hangs.look(now)
        seen.append((now, len(hung.given_up), len(hung.replaced)))
    assert seen == [(1090, 0, 0), (1100, 1, 0), (1110, 0, 1), (1120, 0, 1), (1130, 0, 1)]

    hangs.ended(run)
    assert hangs.look(2000).replaced == ()
    assert hangs.due is None


def test_a_stopped_process_gives_its_runs_time_to_end() -> None:
    hangs, run = HangDetector(HangRule(100, 10)), Run(0, 0, (), 0)
    hangs.begun(run, times(), 0)
    # The process was stopped for a while, and its computing threads with it.
    assert hangs.look(5000).given_up == ()
    assert hangs.look(5009).given_up == ()
    assert hangs.look(5010).given_up == (run,)


def test_without_a_rule_no_run_is_given_up() -> None:
    hangs = HangDetector(None)
    hangs.begun(Run(0, 0, (), 0), times(), 0)
    assert hangs.due is None
    assert hangs.look(1 << 60).given_up == ()


# -- what becomes of requests and slots ------------------------------------------------


def test_requests_of_a_hung_run_fail_and_the_run_is_cancelled() -> None:
    stage, request = Stage(), work()
    stage.submit(request)
    plans = stage.follow(until=100)

    ((refused, error),) = plans[-1].refused
    assert (refused, str(error)) == (
        request,
        "model 'm': inference failed: the run did not end within 1e-07 s and was given up",
    )
    assert isinstance(error, InferenceFailed)
    assert [run.slot for run in plans[-1].given_up] == [0]
    assert plans[-1].cancels == [(0, 0)]
    assert stage.scheduler.running == 1


def test_the_slot_of_a_run_that_ends_after_its_cancel_is_reused_and_not_replaced() -> None:
    stage, waiting = Stage(), work()
    stage.submit(work(), waiting)
    stage.follow(until=100)
    assert stage.scheduler.finished(0, 0, 105, ok=False) == []
    plan = stage.poll(105)
    assert [run.members[0].request for run in plan.starts] == [waiting]
    assert not stage.poll(112).replaced


def test_the_slot_of_a_run_that_ignores_its_cancel_is_replaced_and_reused() -> None:
    stage, waiting = Stage(), work()
    stage.submit(work(), waiting)
    assert stage.follow(until=110)[-1].replaced == [(0, 0)]
    assert stage.scheduler.finished(0, 0, 111, ok=False) == []
    assert [run.members[0].request for run in stage.poll(111).starts] == [waiting]


def test_requests_of_a_hung_batch_all_fail_and_none_is_retried() -> None:
    stage = Stage(rules=SchedulerRules(LIMITS, BatchRule(4), hangs=HangRule(100, 10)))
    batch = [work(batch_key="k") for _ in range(3)]
    (run,) = stage.submit(*batch).starts
    assert len(run.members) == 3
    stage.follow(until=110)
    assert stage.errors == dict.fromkeys(batch, "InferenceFailed")
    assert stage.scheduler.finished(0, 0, 120, ok=False) == []
    assert stage.scheduler.idle


def test_a_run_whose_client_has_left_is_given_up_without_an_error() -> None:
    stage, request = Stage(), work(deadline=50)
    stage.submit(request)
    plans = stage.follow(until=110)
    assert stage.errors == {request: "DeadlinePassed"}
    assert plans[-1].replaced == [(0, 0)]


@pytest.mark.parametrize("pinned", [False, True], ids=["carried", "pinned"])
def test_a_sequence_with_a_hung_run_is_lost_and_its_slot_is_free_again(pinned: bool) -> None:
    stage = Stage(
        PoolSpec(2),
        rules=SchedulerRules(LIMITS, sequences=SequenceLimits(2, 10_000), pinned=pinned, hangs=HangRule(100, 10)),
    )
    first, second = work(step=SequenceStep("s", start=True)), work(step=SequenceStep("s"))
    (run,) = stage.submit(first, second).starts
    stage.follow(until=100)
    assert stage.errors == {first: "InferenceFailed", second: "SequenceLost"}
    with pytest.raises(SequenceLost, match="one of its requests hung"):
        stage.scheduler.submit(work(step=SequenceStep("s")), 105)

    stage.scheduler.finished(run.pool, run.slot, 111, ok=False)
    assert stage.scheduler.idle
    assert sorted(stage.scheduler._pools[0].free) == [0, 1]


# -- devices that are lost -------------------------------------------------------------


def test_nothing_starts_on_a_lost_device() -> None:
    stage = Stage(PoolSpec(1), PoolSpec(1))
    stage.scheduler.disable(0, 0)
    plan = stage.submit(work(), work())
    assert [(run.pool, run.slot) for run in plan.starts] == [(1, 0)]
    assert stage.scheduler.limit == 1 + LIMITS.max_length


def test_a_lost_device_holds_no_other_model_back() -> None:
    shared = SharedDevice()
    stage, other = Stage(PoolSpec(1, 1, shared.join(1.0, 1.0))), shared.join(1e-6, 1.0)
    stage.submit(work(), work())
    other.started(0)
    other.ended(SECOND)
    assert not other.may_start(SECOND)
    stage.scheduler.disable(0, SECOND)
    assert other.may_start(SECOND)


def test_a_request_whose_device_was_lost_runs_on_another() -> None:
    stage, request = Stage(PoolSpec(1), PoolSpec(1)), work()
    stage.submit(request)
    stage.scheduler.disable(0, 5)
    assert stage.scheduler.finished(0, 0, 5, ok=False, lost=True) == []
    (run,) = stage.poll(5).starts
    assert (run.pool, run.members[0].request) == (1, request)


def test_a_request_whose_only_device_was_lost_is_answered() -> None:
    stage, request = Stage(), work()
    stage.submit(request)
    stage.scheduler.disable(0, 5)
    assert [entry.request for entry in stage.scheduler.finished(0, 0, 5, ok=False, lost=True)] == [request]


def test_sequences_on_a_device_are_lost_with_it() -> None:
    stage = Stage(rules=SchedulerRules(LIMITS, sequences=SequenceLimits(2, 10_000), pinned=True))
    stage.submit(work(step=SequenceStep("s", start=True)))
    stage.scheduler.finished(0, 0, 5)
    stage.scheduler.disable(0, 6)
    with pytest.raises(SequenceLost, match="its device was lost"):
        stage.scheduler.submit(work(step=SequenceStep("s")), 7)


# -- what they leave to run on ---------------------------------------------------------


def test_hung_runs_hold_everything_once_no_pool_has_a_usable_slot() -> None:
    held = HungSlots([2, 1])
    held.add(0, 0, 10)
    held.add(1, 0, 20)
    assert (bool(held), held.since) == (True, None)
    held.add(0, 1, 30)
    assert held.since == 30
    held.add(0, 1, 40)
    assert held.since == 30


def test_a_slot_that_comes_back_is_usable() -> None:
    held = HungSlots([1, 1])
    held.add(0, 0, 10)
    held.add(1, 0, 20)
    assert held.release(1, 0, 30)
    assert held.since is None
    assert not held.release(1, 0, 31)
    held.add(1, 0, 40)
    assert held.since == 40
    for pool in (0, 1):
        held.release(pool, 0, 50)
    assert (bool(held), held.since) == (False, None)


def test_a_pool_narrower_than_its_slots_is_held_by_as_many_runs_as_its_width() -> None:
    held = HungSlots([1])
    held.add(0, 7, 10)
    assert held.since == 10


def test_a_disabled_pool_counts_neither_as_usable_nor_as_hung() -> None:
    held = HungSlots([1, 1])
    held.add(0, 0, 10)
    held.disable(1, 20)
    assert held.since == 20
    held.disable(0, 30)
    held.disable(0, 31)
    assert held.since is None
