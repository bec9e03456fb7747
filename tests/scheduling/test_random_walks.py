"""Random walks through the scheduler, with integers for time, against a simple model of it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from inferd.errors import (
    DeadlinePassed,
    InferdError,
    InferenceFailed,
    Overloaded,
    QueueFull,
    QuotaExceeded,
    SequenceGone,
    SequenceLost,
    TooManySequences,
)
from inferd.fair_share import fair_share
from inferd.requests import Request, SequenceStep
from inferd.scheduling.batching import BatchRule
from inferd.scheduling.entry import UNSET_PRIORITY, Run
from inferd.scheduling.fairness import SharedDevice
from inferd.scheduling.hangs import HangRule
from inferd.scheduling.objective import Objective
from inferd.scheduling.rules import PoolSpec, QueueLimits, SchedulerRules
from inferd.scheduling.scheduler import Plan, Scheduler
from inferd.scheduling.sequences import SequenceLimits
from tests.effort import examples
from tests.scheduling.work import work

Place = tuple[int, int]
STEPS: Counter[str] = Counter()

LIMITS = st.builds(QueueLimits, st.integers(1, 8), st.integers(1, 150), st.none() | st.integers(1, 5))
# Slots, how many may run at a time, and the known time of a run.
POOL = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 50))
BATCH = st.builds(BatchRule, st.integers(2, 6), st.sampled_from([0, 0, 15]), st.sampled_from([(), (2,), (2, 4)]))
HANGS = st.none() | st.builds(HangRule, st.integers(1, 150), st.integers(1, 20))
SEQUENCES = st.builds(SequenceLimits, st.integers(1, 4), st.integers(20, 80))


class Walk(RuleBasedStateMachine):
    """What must hold whatever clients and devices do: see the assertions of :meth:`look`."""

    name: ClassVar[str] = "plain"

    def rules_from(self, draw: Callable[[Any], Any]) -> SchedulerRules:
        return SchedulerRules(draw(LIMITS))

    def pools_from(self, draw: Callable[[Any], Any]) -> list[tuple[int, int, int]]:
        return [draw(POOL)]

    @initialize(data=st.data())
    def begin(self, data: Any) -> None:
        self.now = 0
        self.rules_of = self.rules_from(data.draw)
        self.rules_of = replace(self.rules_of, hangs=data.draw(HANGS))
        self.pools = [(slots, min(slots, width), time) for slots, width, time in self.pools_from(data.draw)]
        self.device = SharedDevice()
        pool_specs = [PoolSpec(slots, width, self.device.join(1.0, 1 / width)) for slots, width, _ in self.pools]
        self.scheduler = Scheduler("m", self.rules_of, pool_specs)
        for index, (_, _, time) in enumerate(self.pools):
            self.scheduler.seed(index, [(1, time), (4, 2 * time)])
        self.submitted: list[Request] = []
        self.waiting: list[Request] = []
        self.runs: dict[Place, Run] = {}
        self.ended: dict[Request, str] = {}
        self.cancelled_runs: set[Run] = set()
        self.begun: dict[Run, int] = {}
        self.given_up: dict[Run, int] = {}
        self.hopeless: list[Place] = []
        self.disabled: set[int] = set()
        self.alone: set[Request] = set()
        self.due: dict[Request, int] = {}

    # -- what clients and devices do ------------------------------------------------

    @rule(
        patience=st.none() | st.none() | st.integers(-1, 120),
        priority=st.sampled_from([0, 0, 0, 1, 2, 2**64 - 1]),
        nbytes=st.integers(0, 60),
        rows=st.sampled_from([1, 1, 1, 2, 7]),
        batch_key=st.sampled_from([None, "a", "a", "b"]),
        client=st.sampled_from(["", "x"]),
        sequence=st.integers(0, 4),
        start=st.booleans(),
        end=st.sampled_from([False, False, True]),
    )
    def submit(
        self,
        patience: int | None,
        priority: int,
        nbytes: int,
        rows: int,
        batch_key: str | None,
        client: str,
        sequence: int,
        start: bool,
        end: bool,
    ) -> None:
        self.count("submit")
        step = None
        if self.rules_of.sequences and (sequence or self.rules_of.pinned):
            step, rows = SequenceStep(sequence, start, end, owner=sequence % 2, client=client), 1
        batch_key = None if self.rules_of.pinned else batch_key
        deadline = None if patience is None else self.now + patience
        request = work(deadline, priority, nbytes, rows, batch_key, client, step)
        request.stages.received = self.now
        in_flight = sum(r.client == client for r in self.alive())
        held = sum(r.nbytes for r in self.waiting)
        limits = self.rules_of.limits
        refusal: InferdError | None = None
        try:
            self.scheduler.submit(request, self.now)
        except InferdError as error:
            refusal = error
        if refusal is not None:
            match refusal:
                case DeadlinePassed():
                    assert deadline is not None
                case QuotaExceeded():
                    assert in_flight == limits.per_client
                case QueueFull():
                    assert len(self.waiting) >= limits.max_length or held + nbytes > limits.max_bytes
                    assert self.waiting
                case Overloaded():
                    assert self.rules_of.objective is not None
                    assert self.waiting or self.full(), "refused with a free slot"
                case SequenceGone() | SequenceLost() | TooManySequences():
                    assert step is not None
                case _:
                    raise refusal
            assert getattr(refusal, "retry_after", 0) >= 0
        else:
            assert deadline is None or deadline > self.now
            assert limits.per_client is None or in_flight < limits.per_client
            self.submitted.append(request)
            self.waiting.append(request)
            self.due[request] = self.scheduler._entries[request].due
            objective = self.rules_of.objective
            if deadline is None and objective is None:
                assert self.due[request] > self.now
            else:
                ends = [deadline] if deadline is not None else []
                assert self.due[request] <= min([*ends, *([self.now + objective.latency] if objective else [])])
        # As the shell does it: others may have been evicted to make room.
        self.look()

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        self.count("cancel")
        request = data.draw(st.sampled_from(self.submitted[-30:]))
        self.look()  # requests that were held behind a lost one end with the next poll
        outcomes = dict(self.ended)
        alive = request not in self.ended
        assert self.scheduler.cancel(request, self.now) is alive
        if alive:
            self.end(request, "cancelled")
        assert {r: how for r, how in self.ended.items() if r is not request} == {
            r: how for r, how in outcomes.items() if r is not request
        }

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), ok=st.sampled_from([True, True, True, False]))
    def finish(self, data: Any, ok: bool) -> None:
        self.count("finish")
        self.complete(data.draw(st.sampled_from(sorted(self.runs))), ok)
        if not ok:
            self.look()

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def finish_and_look(self, data: Any) -> None:
        self.count("finish")
        self.complete(data.draw(st.sampled_from(sorted(self.runs))), True)
        self.look()

    @precondition(lambda self: self.hopeless)
    @rule()
    def replace(self) -> None:
        self.put_others_in_their_place()

    @precondition(lambda self: self.runs and self.rules_of.hangs is not None)
    @rule()
    def outwait(self) -> None:
        """The runs in flight never end by themselves."""
        self.count("outwait")
        hung = set(self.runs.values())
        while hung & set(self.runs.values()):
            plan = self.look()
            self.put_others_in_their_place()
            assert plan.wake_at is not None
            self.now = plan.wake_at

    @precondition(lambda self: len(self.pools) - len(self.disabled) > 1)
    @rule(data=st.data())
    def lose_a_device(self, data: Any) -> None:
        self.count("lose a device")
        index = data.draw(st.sampled_from([i for i in range(len(self.pools)) if i not in self.disabled]))
        self.disabled.add(index)
        self.scheduler.disable(index, self.now)
        self.look()

    @rule(by=st.integers(1, 40))
    def advance(self, by: int) -> None:
        self.count("advance")
        self.now += by

    @rule()
    def poll(self) -> None:
        self.count("poll")
        self.look()

    @precondition(lambda self: self.rules_of.sequences is not None and len(self.submitted) % 4 == 3)
    @rule(owner=st.integers(0, 1))
    def disconnect(self, owner: int) -> None:
        self.count("disconnect")
        self.scheduler.disconnected(owner, self.now)
        self.look()

    @precondition(lambda self: self.waiting and not self.full() and not self.rules_of.pinned)
    @rule()
    def hang(self) -> None:
        """No run ever ends: requests that can start do so anyway."""
        self.count("hang")
        for _ in range(400):
            plan = self.look()
            if not self.startable() or self.full():
                return
            assert plan.wake_at is not None, "work waits, a slot is free, and no poll is due"
            self.now = plan.wake_at
        raise AssertionError("work waits for ever with a free slot")

    # -- the model ------------------------------------------------------------------

    def put_others_in_their_place(self) -> None:
        """Slots of hung runs are replaced, unless the run has ended meanwhile."""
        for place in self.hopeless:
            if (run := self.runs.get(place)) is not None and run in self.given_up:
                self.count("replace")
                assert all(m.request in self.ended for m in run.members)
                self.complete(place, ok=False)
        self.hopeless = []

    def count(self, step: str) -> None:
        STEPS[step] += 1

    def full(self) -> bool:
        running = Counter(pool for pool, _ in self.runs)
        return all(running[i] >= width for i, (_, width, _) in enumerate(self.pools) if i not in self.disabled)

    def in_flight(self) -> set[Any]:
        return {m.sequence for run in self.runs.values() for m in run.members if m.sequence is not None}

    def startable(self) -> list[Request]:
        """Waiting requests with none of their sequence before them."""
        busy, seen, free = {id(s) for s in self.in_flight()}, set[int](), []
        for request in self.waiting:
            sequence = self.scheduler._entries[request].sequence
            if sequence is None or (id(sequence) not in busy and id(sequence) not in seen):
                free.append(request)
            seen.add(id(sequence))
        return free

    def alive(self) -> list[Request]:
        return [r for r in self.submitted if r not in self.ended]

    def end(self, request: Request, how: str) -> None:
        assert request not in self.ended, "a request ended twice"
        self.ended[request] = how
        if request in self.waiting:
            self.waiting.remove(request)

    def complete(self, place: Place, ok: bool) -> None:
        run = self.runs.pop(place)
        alive = [m.request for m in run.members if m.request not in self.ended]
        lost = place[0] in self.disabled
        answered = [entry.request for entry in self.scheduler.finished(*place, self.now, ok=ok, lost=lost)]
        if not ok and (len(run.members) > 1 or lost):
            assert answered == []
            self.alone |= set(alive)
            # They are first again, in their order.
            self.waiting = sorted([*alive, *self.waiting], key=self.submitted.index)
        else:
            assert answered == alive
            for request in alive:
                self.end(request, "ok" if ok else "failed")

    def order(self, request: Request) -> int:
        return self.submitted.index(request)

    def look(self) -> Plan:
        plan = self.scheduler.poll(self.now)
        for request, error in plan.refused:
            assert isinstance(error, InferdError)
            assert not isinstance(error, DeadlinePassed) or request.deadline is not None
            assert not isinstance(error, SequenceLost) or request.step is not None
            if isinstance(error, InferenceFailed):
                assert any(request is m.request for run in plan.given_up for m in run.members)
            self.end(request, type(error).__name__)
        assert all(r.deadline is None or r.deadline > self.now for r in self.alive()), "someone due is still here"

        for run in plan.given_up:
            assert self.rules_of.hangs is not None
            assert self.rules_of.hangs.after is not None
            assert self.runs[run.pool, run.slot] is run
            assert run not in self.given_up, "a run was given up twice"
            assert self.now - self.begun[run] >= self.rules_of.hangs.after
            assert all(m.request in self.ended for m in run.members), "somebody still waits for a run that was given up"
            self.given_up[run] = self.now
        for place in plan.replaced:
            assert self.rules_of.hangs is not None
            assert self.now - self.given_up[self.runs[place]] >= self.rules_of.hangs.cancel_grace
            self.hopeless.append(place)
        if self.rules_of.hangs is not None and self.runs:
            assert plan.wake_at is not None, "a run may hang, and no poll is due"

        for place in plan.cancels:
            if (run := self.runs.get(place)) is not None:
                assert all(m.request in self.ended for m in run.members), "a run was cancelled that somebody waits for"
                assert run not in self.cancelled_runs
                self.cancelled_runs.add(run)
        for run in self.runs.values():
            abandoned = all(m.request in self.ended for m in run.members)
            assert not abandoned or run in self.cancelled_runs

        for run in plan.starts:
            self.started(run)
        for index, (slots, width, _) in enumerate(self.pools):
            used = [slot for pool, slot in self.runs if pool == index]
            assert len(used) <= width
            assert all(slot in range(slots) for slot in used)

        deadlines = [r.deadline for r in self.alive() if r.deadline is not None]
        assert plan.wake_at is None or plan.wake_at > self.now
        assert not deadlines or (plan.wake_at is not None and plan.wake_at <= min(deadlines))
        if self.startable() and not self.full() and not self.rules_of.pinned:
            assert plan.wake_at is not None, "work waits with a free slot, and no poll is due"
        # Compaction happens on polls.
        assert len(self.scheduler._deadlines) <= 2 * len(deadlines) + 64
        return plan

    def started(self, run: Run) -> None:
        place = (run.pool, run.slot)
        assert place not in self.runs, "a slot was given to two runs"
        assert run.pool not in self.disabled, "a run was started on a device that is lost"
        self.begun[run] = self.now
        members = [m.request for m in run.members]
        assert members
        assert len(set(members)) == len(members)
        if len(members) > 1:
            assert len({m.batch_key for m in members}) == 1
            assert members[0].batch_key is not None
            assert sum(m.rows for m in members) <= self.rules_of.batch.max_rows
            assert not self.alone & set(members)
        at = 0
        for member in run.members:
            assert member.rows == (range(at, at + member.request.rows) if len(members) > 1 else None)
            at += member.request.rows
        busy = self.in_flight()
        for member in run.members:
            if member.sequence is not None:
                assert member.sequence not in busy, "two requests of a sequence run side by side"
                earlier = [
                    r
                    for r in self.waiting
                    if self.scheduler._entries.get(r) is not None
                    and self.scheduler._entries[r].sequence is member.sequence
                    and self.order(r) < self.order(member.request)
                ]
                assert earlier == [], "a sequence was overtaken by itself"
                busy.add(member.sequence)
        for member in members:
            self.waiting.remove(member)
        self.runs[place] = run
        if len(self.pools) == 1 and self.rules_of.sequences is None:
            for member in members:
                due = self.due[member]
                assert all(
                    self.due[r] > due or (self.due[r] == due and self.order(r) > self.order(member))
                    for r in self.waiting
                    if (r.batch_key, r.priority or UNSET_PRIORITY)
                    == (member.batch_key, member.priority or UNSET_PRIORITY)
                    and (r in self.alone) == (member in self.alone)
                ), "someone was overtaken"

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        limits, inside = self.rules_of.limits, self.scheduler
        assert inside.running == len(self.runs)
        assert sorted(map(id, inside.requests())) == sorted(map(id, self.alive())) or inside._refused
        if not inside._refused:
            assert inside.waiting == len(self.waiting)
            assert inside._waiting_bytes == sum(r.nbytes for r in self.waiting)
            assert inside.idle == (not self.alive() and not self.runs)
            # Requests that are retried were admitted before.
            new = [r for r in self.waiting if r not in self.alone]
            assert len(new) <= limits.max_length
            assert len(new) <= 1 or sum(r.nbytes for r in new) <= limits.max_bytes
        if limits.per_client is not None and not inside._refused:
            assert max(Counter(r.client for r in self.alive()).values(), default=0) <= limits.per_client
        if self.rules_of.sequences is not None:
            most = self.rules_of.sequences.most
            assert inside.sequences <= most
            held = Counter(s.client for s in self.places())
            assert held == inside._sequences._held
            # A client keeps its places when others come later.
            assert held["x"] <= fair_share(most, 0)
        for index, pool in enumerate(inside._pools):
            kept = [s.place[1] for s in self.places() if s.place is not None and s.place[0] == index]
            assert len(set(kept)) == len(kept), "a slot is kept for two sequences"
            running = [slot for pool_index, slot in self.runs if pool_index == index]
            assert sorted([*pool.free, *{*kept, *running}]) == list(range(pool.slots))

    def places(self) -> list[Any]:
        sequences = self.scheduler._sequences
        return [*sequences._live.values(), *sequences._parting] if sequences is not None else []

    def teardown(self) -> None:
        """After draining, every request has ended, every slot is free and nothing is left inside."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(4 * len(self.submitted) + 4):
            plan = self.look()
            for place in sorted(self.runs):
                self.complete(place, ok=True)
            if plan.wake_at is not None and self.waiting:
                self.now = max(self.now, min(plan.wake_at, self.now + 50))
        self.now += 1000
        self.look()
        assert len(self.ended) == len(self.submitted), "work starved"
        inside = self.scheduler
        assert inside.idle
        assert not (inside._entries)
        assert not (inside._runs)
        assert not (inside._timed)
        assert not (inside._deadlines)
        assert not (inside._cancels)
        assert not (inside._refused)
        assert (inside._waiting, inside._waiting_bytes, inside._queue.length) == (0, 0, 0)
        assert not (inside._queue._levels)
        assert not (inside._queue._queues)
        assert not (inside._queue._rows)
        assert not (inside._queue._rows_by_key)
        assert inside._quota is None or not inside._quota._in_flight
        assert [sorted(pool.free) for pool in inside._pools] == [list(range(n)) for n, _, _ in self.pools]
        assert [share.runs for share in inside._shares] == [0] * len(self.pools)
        assert abs(self.device._load) < 1e-9
        assert not inside._hangs._timers
        if inside._sequences is not None:
            assert inside.sequences == 0
            assert not inside._sequences._resting
            assert not inside._sequences._held


class SeveralPools(Walk):
    name = "several pools"

    def pools_from(self, draw: Callable[[Any], Any]) -> list[tuple[int, int, int]]:
        pools: list[tuple[int, int, int]] = draw(st.lists(POOL, min_size=2, max_size=3))
        return pools


class Joining(Walk):
    name = "batching"

    def rules_from(self, draw: Callable[[Any], Any]) -> SchedulerRules:
        return SchedulerRules(draw(LIMITS), draw(BATCH))


class UnderAnObjective(Walk):
    name = "objective"

    def rules_from(self, draw: Callable[[Any], Any]) -> SchedulerRules:
        return SchedulerRules(
            draw(LIMITS), draw(BATCH), Objective(draw(st.integers(5, 200)), draw(st.sampled_from([50.0, 99.0])))
        )


class InSequences(Walk):
    name = "sequences"

    def rules_from(self, draw: Callable[[Any], Any]) -> SchedulerRules:
        return SchedulerRules(draw(LIMITS), draw(BATCH), sequences=draw(SEQUENCES))


class Pinned(Walk):
    name = "pinned sequences"

    def rules_from(self, draw: Callable[[Any], Any]) -> SchedulerRules:
        return SchedulerRules(
            draw(LIMITS), sequences=SequenceLimits(draw(st.integers(1, 3)), draw(st.integers(20, 80))), pinned=True
        )

    def pools_from(self, draw: Callable[[Any], Any]) -> list[tuple[int, int, int]]:
        most = self.rules_of.sequences.most if self.rules_of.sequences else 1
        return [(most + draw(st.integers(0, 2)), draw(st.integers(1, 3)), draw(st.integers(0, 50)))]


WALKS = (Walk, SeveralPools, Joining, UnderAnObjective, InSequences, Pinned)
WANTED = 10_000


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.name)
def test_whatever_happens_the_promises_hold(walk: type[Walk]) -> None:
    run_state_machine_as_test(
        walk, settings=settings(max_examples=examples(120), stateful_step_count=40, deadline=None)
    )


def test_the_walks_were_long_enough(figure: Callable[[str], None]) -> None:
    total = sum(STEPS.values())
    figure(f"scheduler: {total} random steps, {', '.join(f'{n} {step}' for step, n in sorted(STEPS.items()))}")
    assert total >= WANTED or not STEPS, f"{total} steps"
