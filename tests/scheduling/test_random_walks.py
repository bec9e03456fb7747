"""Random walks through the scheduler, with integers for time, against a simple model of it."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inferd.errors import DeadlinePassed, QueueFull
from inferd.requests import Request
from inferd.scheduling.entry import UNSET_PRIORITY
from inferd.scheduling.scheduler import Limits, Plan, Scheduler
from tests.scheduling.work import work

Place = tuple[int, int]
POOLS = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 50)), min_size=1, max_size=3)


class Walk(RuleBasedStateMachine):
    """What must hold whatever clients and devices do: see the assertions of :meth:`look`."""

    @initialize(pools=POOLS, max_length=st.integers(1, 6), max_bytes=st.integers(1, 100))
    def begin(self, pools: list[tuple[int, int]], max_length: int, max_bytes: int) -> None:
        self.now = 0
        self.slots = [slots for slots, _ in pools]
        self.limits = Limits(max_length, max_bytes)
        self.scheduler = Scheduler("m", self.limits, self.slots)
        for index, (_, service_time) in enumerate(pools):
            self.scheduler.seed(index, service_time)
        # In order of arrival; the order of a request is fixed by its level and its place here.
        self.submitted: list[Request] = []
        self.waiting: list[Request] = []
        self.running: dict[Place, Request] = {}
        self.ended: list[Request] = []
        self.to_cancel: set[Place] = set()

    # -- what clients and devices do ------------------------------------------------

    @rule(
        patience=st.none() | st.integers(-1, 60),
        priority=st.sampled_from([0, 0, 0, 1, 2, 2**64 - 1]),
        nbytes=st.integers(0, 60),
    )
    def submit(self, patience: int | None, priority: int, nbytes: int) -> None:
        request = work(None if patience is None else self.now + patience, priority, nbytes)
        held = sum(r.nbytes for r in self.waiting)
        too_many = len(self.waiting) >= self.limits.max_length
        too_large = bool(self.waiting) and held + nbytes > self.limits.max_bytes
        if patience is not None and patience <= 0:
            with pytest.raises(DeadlinePassed):
                self.scheduler.submit(request, self.now)
        elif too_many or too_large:
            with pytest.raises(QueueFull) as refused:
                self.scheduler.submit(request, self.now)
            assert refused.value.retry_after >= 0
        else:
            self.scheduler.submit(request, self.now)
            self.submitted.append(request)
            self.waiting.append(request)

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        request = data.draw(st.sampled_from(self.submitted))
        alive = request not in self.ended
        assert self.scheduler.cancel(request) is alive
        if alive:
            self.end(request)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), learn=st.booleans())
    def finish(self, data: Any, learn: bool) -> None:
        self.complete(data.draw(st.sampled_from(sorted(self.running))), learn)

    @rule(by=st.integers(1, 40))
    def advance(self, by: int) -> None:
        self.now += by

    @rule()
    def poll(self) -> None:
        self.look()

    @precondition(lambda self: self.waiting and len(self.running) < sum(self.slots))
    @rule()
    def hang(self) -> None:
        """Nothing that runs ever ends: what waits is started all the same, as far as slots are free."""
        for _ in range(30):
            plan = self.look()
            if not self.waiting or len(self.running) == sum(self.slots):
                return
            assert plan.wake_at is not None, "work waits, a slot is free, and nobody will look again"
            self.now = plan.wake_at
        raise AssertionError("work waits for ever beside a free slot")

    # -- the model ------------------------------------------------------------------

    def end(self, request: Request) -> None:
        assert request not in self.ended, "a request ended twice"
        self.ended.append(request)
        if request in self.waiting:
            self.waiting.remove(request)
        self.to_cancel |= {place for place, occupant in self.running.items() if occupant is request}

    def complete(self, place: Place, learn: bool = True) -> None:
        request = self.running.pop(place)
        answered = self.scheduler.finished(*place, self.now, learn)
        if request in self.ended:
            assert answered is None
        else:
            assert answered is request
            self.end(request)

    def order(self, request: Request) -> tuple[int, int]:
        return request.priority or UNSET_PRIORITY, self.submitted.index(request)

    def alive(self) -> list[Request]:
        return [r for r in self.submitted if r not in self.ended]

    def look(self) -> Plan:
        due = [r for r in self.alive() if r.deadline is not None and r.deadline <= self.now]
        in_line = [r for r in due if r in self.waiting]
        plan = self.scheduler.poll(self.now)

        assert sorted(map(id, due)) == sorted(id(e.request) for e in plan.expired)
        for expired in plan.expired:
            assert expired.stage == ("waiting in the queue" if expired.request in in_line else "running")
            self.end(expired.request)

        # Each run that lost its client is cancelled once; it may have ended by itself meanwhile.
        assert {place for place in self.to_cancel if place in self.running} <= set(plan.cancels) <= self.to_cancel
        assert len(plan.cancels) == len(set(plan.cancels))
        assert all(self.running[place] in self.ended for place in plan.cancels if place in self.running)
        self.to_cancel.clear()

        for start in plan.starts:
            place = (start.pool, start.slot)
            assert start.slot in range(self.slots[start.pool])
            assert place not in self.running, "a slot was given to two requests"
            self.waiting.remove(start.request)
            self.running[place] = start.request
        if len(self.slots) == 1 and plan.starts:
            started = [self.order(start.request) for start in plan.starts]
            assert started == sorted(started)
            assert all(self.order(r) > started[-1] for r in self.waiting), "someone was overtaken"

        deadlines = [r.deadline for r in self.alive() if r.deadline is not None]
        assert plan.wake_at is None or plan.wake_at > self.now
        assert not deadlines or (plan.wake_at is not None and plan.wake_at <= min(deadlines))
        if self.waiting and len(self.running) < sum(self.slots):
            assert self.running, "work waits and everything is idle"
            assert plan.wake_at is not None
        # Compaction happens on polls.
        assert len(self.scheduler._deadlines) <= 2 * len(deadlines) + 64
        return plan

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        assert self.scheduler.waiting == len(self.waiting) <= self.limits.max_length
        assert self.scheduler.running == len(self.running)
        assert len(self.waiting) <= 1 or sum(r.nbytes for r in self.waiting) <= self.limits.max_bytes
        assert self.scheduler.requests() == self.alive()
        assert self.scheduler.idle == (not self.alive() and not self.running)

    def teardown(self) -> None:
        """Drained, every request has ended, every slot is back and nothing is left inside."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(2 * len(self.submitted) + 2):
            self.look()
            for place in sorted(self.running):
                self.complete(place)
        self.look()
        assert len(self.ended) == len(self.submitted)
        inside = self.scheduler
        assert inside.idle
        assert not inside._entries
        assert not inside._occupants
        assert not inside._timed
        assert not inside._deadlines
        assert not inside._cancels
        assert (inside._line.length, inside._line.nbytes) == (0, 0)
        assert not inside._line._levels
        assert not inside._line._lines
        assert [sorted(pool.free) for pool in inside._pools] == [list(range(n)) for n in self.slots]


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
