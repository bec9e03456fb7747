"""Requests in one batch: each gets the result that it would get alone, even if others fail."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from inferd.engine.runtime import ov
from inferd.engine.slot import RunFailed
from inferd.errors import InferenceFailed
from inferd.requests import Request
from inferd.scheduling.batching import BatchRule
from inferd.scheduling.rules import SchedulerRules
from inferd.tensors import Tensor
from tests.dispatchers import ROOM, Bench, RealBench, load
from tests.engine import models
from tests.engine.fake_slot import FakeSlot
from tests.engine.models import op, parameter, tensor
from tests.event_loop import on_loop, until
from tests.replies import Answer, row

BATCHING = SchedulerRules(ROOM, BatchRule(max_rows=8))
BATCHED = "[batching]\nmax_size = 16"


def batching(slot: Callable[[Callable[[], None]], FakeSlot] = FakeSlot) -> Bench:
    """One slot that is known to run eight rows in the time of two."""
    return Bench(1, rules=BATCHING, service_times=[1e6], gains=[(8, 2e6)], slot=slot)


async def batched(bench: Bench, values: Iterable[float]) -> list[tuple[Request, Answer]]:
    """A row of each of ``values``, all in one run that goes on: they met in the queue, behind a run of another kind."""
    bench.submit()
    asked = [row(value) for value in values]
    for request, _ in asked:
        bench.dispatcher.submit(request)
    slot = bench.slots[0][0]
    slot.complete()
    await until(lambda: slot.starts == 2)
    return asked


@on_loop
async def test_batched_requests_each_get_their_own_rows() -> None:
    bench = batching()
    asked = await batched(bench, range(5))
    slot = bench.slots[0][0]
    slot.complete()
    assert [(await answer.ended()).outputs[0].tolist() for _, answer in asked] == [[[i]] for i in range(5)]
    await bench.dispatcher.drained()
    assert [(seen.batch_rows, seen.leader) for seen in bench.seen] == [(1, True), (5, True), *[(5, False)] * 4]
    assert slot.starts == 2


@on_loop
async def test_the_wait_to_fill_a_batch_is_told_apart_from_the_wait_for_a_slot() -> None:
    rules = SchedulerRules(ROOM, BatchRule(max_rows=2, max_delay=10**12))
    bench = Bench(1, rules=rules, gains=[(2, 2e6)], service_times=[1.9e6])
    (first, _), (second, answer) = row(1), row(2)
    bench.dispatcher.submit(first)
    assert bench.running == []
    bench.dispatcher.submit(second)
    bench.slots[0][0].complete()
    await answer.ended()
    await bench.dispatcher.drained()
    assert bench.seen[0].batch_rows == 2
    # The first waited for the second, which came as soon as it was wanted; neither waited for the slot.
    assert first.stages.queued == first.stages.held < second.stages.held == second.stages.queued
    for seen in bench.seen:
        decode, queue, batch, *_ = seen.stages.durations()
        assert decode + queue + batch == seen.stages.started - seen.stages.received
        assert sum(seen.stages.durations()) == seen.stages.total()
        assert (seen.stages.queue(), seen.stages.batch()) == (queue, batch)


@on_loop
async def test_members_that_leave_do_not_touch_their_neighbours() -> None:
    bench = batching()
    asked = await batched(bench, range(4))
    slot = bench.slots[0][0]
    bench.dispatcher.cancel(asked[1][0])
    bench.dispatcher.cancel(asked[2][0])
    assert slot.cancels == 0
    slot.complete()
    assert [(await asked[i][1].ended()).outputs[0].tolist() for i in (0, 3)] == [[[0]], [[3]]]
    await bench.dispatcher.drained()
    assert sorted(bench.outcomes()) == ["cancelled", "cancelled", "ok", "ok", "ok"]


@on_loop
async def test_a_run_that_no_client_waits_for_is_cancelled() -> None:
    bench = batching()
    asked = await batched(bench, range(3))
    slot = bench.slots[0][0]
    for request, _ in asked:
        bench.dispatcher.cancel(request)
    assert slot.cancels == 1
    await bench.dispatcher.drained()


# -- runs that fail ------------------------------------------------------------------

POISON = 666.0


class Poisoned(FakeSlot):
    """What it runs on tells whether the run fails."""

    def end(self) -> None:
        self.fail("that can't be computed") if self._poisoned else self.complete()

    @property
    def _poisoned(self) -> bool:
        return POISON in np.frombuffer(self._written[0].data, np.float32)  # type: ignore[call-overload]


class Indigestible(Poisoned):
    """What it runs on tells whether a run begins."""

    def start(self) -> None:
        if self._poisoned:
            raise RunFailed("that can't be computed")
        super().start()


class Uncopyable(FakeSlot):
    """What it is to copy tells whether it can."""

    def write(self, members: Sequence[Sequence[Tensor]]) -> None:
        if any(POISON in np.frombuffer(member[0].data, np.float32) for member in members):  # type: ignore[call-overload]
            raise ValueError
        super().write(members)


@pytest.mark.parametrize("kind", [Poisoned, Indigestible, Uncopyable], ids=["runs", "starts", "copies"])
@pytest.mark.parametrize("place", [0, 2, 5])
def test_only_the_request_that_can_not_be_run_fails(kind: Callable[[Callable[[], None]], FakeSlot], place: int) -> None:
    @on_loop
    async def check() -> None:
        bench = batching(kind)
        values = [POISON if i == place else float(i) for i in range(6)]
        bench.submit()
        asked = [row(value) for value in values]
        for request, _ in asked:
            bench.dispatcher.submit(request)
        while any(answer.times == 0 for _, answer in asked):
            await until(lambda: bool(bench.running) or all(answer.times for _, answer in asked))
            for slot in bench.running:
                slot.end() if isinstance(slot, Poisoned) else slot.complete()
        for value, (_, answer) in zip(values, asked, strict=True):
            assert answer.times == 1
            if value == POISON:
                assert isinstance(answer.error, InferenceFailed)
            else:
                assert answer.outputs[0].tolist() == [[value]]
        await bench.dispatcher.drained()
        assert sorted(bench.outcomes()) == ["internal", *["ok"] * 6]
        # Each was tried once more by itself, and is recorded so.
        assert {(seen.batch_rows, seen.leader) for seen in bench.seen} == {(1, True)}

    check()


@on_loop
async def test_a_member_that_left_a_failed_run_is_not_tried_again() -> None:
    bench = batching()
    asked = await batched(bench, range(3))
    bench.dispatcher.cancel(asked[1][0])
    slot = bench.slots[0][0]
    slot.fail("bad luck")
    for start in (3, 4):
        await until(lambda start=start: slot.starts == start)  # type: ignore[misc]
        slot.complete()
    for i in (0, 2):
        assert (await asked[i][1].ended()).outputs[0].tolist() == [[i]]
    await bench.dispatcher.drained()
    assert (slot.starts, asked[1][1].times) == (4, 0)


# -- real models ---------------------------------------------------------------------


def dense() -> ov.Model:
    """[rows,8] -> [rows,8], each row for itself."""
    weights = np.random.default_rng(2).standard_normal((8, 8)).astype(np.float32)
    x = parameter([1, 8])
    return models.model({"y": op.tanh(op.matmul(x, op.constant(weights), False, False))}, [x])


@on_loop
async def test_batched_requests_are_answered_as_if_each_had_run_alone(tmp_path: Path) -> None:
    dice = np.random.default_rng(7)
    # Nothing known of its times, as many run together as may.
    async with RealBench(load(dense(), tmp_path, BATCHED), SchedulerRules(ROOM, BatchRule(16)), learnt=False) as bench:
        given = [dice.random((dice.integers(1, 4), 8), np.float32) for _ in range(500)]
        asked = [row(tensor(x), priority=int(dice.integers(0, 3))) for x in given]
        for request, _ in asked:
            bench.dispatcher.submit(request)
        together = [(await answer.ended()).outputs[0] for _, answer in asked]
        seen, bench.seen[:] = list(bench.seen), []

        for x, answered in zip(given, together, strict=True):
            request, answer = row(tensor(x))
            request.batch_key = None
            bench.dispatcher.submit(request)
            np.testing.assert_allclose(answered, (await answer.ended()).outputs[0], rtol=1e-5, atol=1e-6)
        await bench.dispatcher.drained()
        assert [s.batch_rows for s in bench.seen] == [s.rows for s in bench.seen]

    assert {s.outcome for s in seen} == {"ok"}
    assert any(s.batch_rows > s.rows for s in seen)
    assert max(s.batch_rows for s in seen) <= 16
    # Every row was in one run, and every run has one leader.
    assert sum(s.batch_rows for s in seen if s.leader) == sum(len(x) for x in given)


@on_loop
async def test_who_leaves_does_not_change_the_answers_of_others(tmp_path: Path) -> None:
    async with RealBench(
        load(models.scaled(3, [1, 4]), tmp_path, BATCHED), SchedulerRules(ROOM, BatchRule(16))
    ) as bench:
        given = np.random.default_rng(3).random((400, 1, 4), np.float32)
        asked = [row(tensor(x)) for x in given]
        for request, _ in asked:
            bench.dispatcher.submit(request)
        # Some of these run by now, some wait.
        gone = set(range(0, 400, 7))
        for i in gone:
            bench.dispatcher.cancel(asked[i][0])
        for i, (_, answer) in enumerate(asked):
            if i not in gone:
                assert np.array_equal((await answer.ended()).outputs[0], 3 * given[i])
        await bench.dispatcher.drained()
        assert all(asked[i][1].times == 0 for i in gone)
