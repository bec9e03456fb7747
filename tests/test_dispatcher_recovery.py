"""After a run that leaves the model unfit nothing runs on it: it is rebuilt while other requests wait."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from inferd.dispatcher import DispatchedModel, Dispatcher
from inferd.engine.dispatch_pool import DispatchPool
from inferd.engine.pool import Pool, Rebuilding
from inferd.engine.slot import SlotFactory
from inferd.errors import Cancelled, DeadlinePassed, FailsTooOften, InferenceFailed, InvalidRequest, ModelUnavailable
from inferd.requests import Observation
from inferd.scheduling.batching import BatchRule
from inferd.scheduling.rules import SchedulerRules
from tests.dispatchers import ROOM, RealBench, load
from tests.engine import models
from tests.engine.fake_slot import FakeSlot
from tests.event_loop import on_loop, until
from tests.replies import Answer, ask, row
from tests.system.failing_models import KINDS, long_or_short


class Fragile:
    """A dispatcher over one pool of fakes that a failure mars: ``slots`` are those of the current model. It is rebuilt
    while ``may_rebuild`` is set; with a ``problem`` the rebuild fails."""

    def __init__(self, size: int, *, rebuild_ns: int = 0, rules: SchedulerRules | None = None) -> None:
        self.models = 0
        self.slots: list[FakeSlot] = []
        self.seen: list[Observation] = []
        self.may_rebuild = threading.Event()
        self.may_rebuild.set()
        self.problem = ""
        self.pool = Pool("CPU", size, self._on_another(), model="model", rebuild=Rebuilding(self._rebuild, rebuild_ns))
        # Four rows take as long as one.
        dispatch_pools = [DispatchPool(self.pool, [(1, 1e6), (4, 1e6)])]
        rules = rules or SchedulerRules(ROOM)
        self.dispatcher = Dispatcher(DispatchedModel("m", 1), rules, dispatch_pools, observe=self.seen.append)

    def _on_another(self) -> SlotFactory:
        self.models += 1
        self.slots = []

        def make(on_done: Callable[[], None]) -> FakeSlot:
            self.slots.append(FakeSlot(on_done))
            return self.slots[-1]

        return make

    def _rebuild(self, model: object) -> Callable[[], tuple[SlotFactory, object]]:
        assert model == "model"
        self.may_rebuild.wait(10)

        def made() -> tuple[SlotFactory, object]:
            if self.problem:
                raise RuntimeError(self.problem)
            return self._on_another(), "model"

        return made

    def submit(self, count: int = 1, client: str = "") -> list[Answer]:
        asked = [ask([time.monotonic_ns() % 1000, n]) for n in range(count)]
        for request, _ in asked:
            request.client = client
            self.dispatcher.submit(request)
        return [answer for _, answer in asked]

    @property
    def running(self) -> list[FakeSlot]:
        return [slot for slot in self.slots if slot.running]

    async def closed(self) -> None:
        self.dispatcher.close()
        assert await asyncio.to_thread(self.pool.close)


@on_loop
async def test_what_waits_is_answered_on_another_model_after_one_failed() -> None:
    bench = Fragile(1)
    bad, *good = bench.submit(4)
    first = bench.slots
    first[0].fail("shapes do not fit")
    assert isinstance((await bad.ended()).error, InferenceFailed)
    for answer in good:
        await until(lambda: bench.slots is not first and bool(bench.running))
        bench.running[0].complete()
        assert (await answer.ended()).error is None
    assert first[0].closed
    assert first[0].starts == 1
    assert (bench.models, bench.pool.rebuilds, bench.pool.tainted) == (2, 1, False)
    await bench.closed()


@on_loop
async def test_requests_batched_with_the_one_that_failed_are_run_again_one_by_one() -> None:
    bench = Fragile(3)
    answers = bench.submit(3)
    bad, well, later = bench.slots
    bad.fail("shapes do not fit")
    well.complete()
    await answers[0].ended()
    assert answers[1].times == 0
    later.complete()
    for left in (2, 1):
        await until(lambda left=left: sum(answer.times for answer in answers) == 3 - left and bool(bench.running))
        assert (bench.models, len(bench.running)) == (2, 1)
        bench.running[0].complete()
    for answer in answers[1:]:
        assert (await answer.ended()).error is None
    assert [answer.times for answer in answers] == [1] * 3
    assert [one.outcome for one in bench.seen] == ["internal", "ok", "ok"]
    await bench.closed()


@on_loop
async def test_where_two_failed_at_once_each_is_tried_by_itself_and_only_the_bad_one_is_told() -> None:
    bench = Fragile(2)
    one, other = bench.submit(2)
    for slot in bench.slots:
        slot.fail("shapes do not fit")
    await until(lambda: bench.models == 2 and bool(bench.running))
    assert (one.times, other.times, len(bench.running)) == (0, 0, 1)
    bench.running[0].fail("shapes do not fit")
    await until(lambda: bench.models == 3 and bool(bench.running))
    assert one.times + other.times == 1
    bench.running[0].complete()
    await asyncio.gather(one.ended(), other.ended())
    assert {type(one.error), type(other.error)} == {InferenceFailed, type(None)}
    await bench.closed()


@on_loop
async def test_companions_in_one_run_are_each_tried_by_themselves() -> None:
    bench = Fragile(1, rules=SchedulerRules(ROOM, BatchRule(4)))
    first, *batch = [row(n) for n in range(4)]
    for request, _ in (first, *batch):
        bench.dispatcher.submit(request)
    bench.running[0].complete()
    await first[1].ended()
    assert bench.running[0].written[0].shape == (3, 1)
    bench.running[0].fail("shapes do not fit")
    for n, (_, answer) in enumerate(batch):
        await until(lambda n=n: bench.models == 2 + (n > 0) and bool(bench.running))
        if n:
            bench.running[0].complete()
        else:
            bench.running[0].fail("shapes do not fit")
        await answer.ended()
    assert [type(answer.error) for _, answer in batch] == [InferenceFailed, type(None), type(None)]
    await bench.closed()


@on_loop
async def test_deadlines_pass_and_clients_may_leave_while_the_model_is_rebuilt() -> None:
    bench = Fragile(1)
    bench.may_rebuild.clear()
    (bad,) = bench.submit()
    bench.slots[0].fail("shapes do not fit")
    await bad.ended()
    late, missed = ask(deadline=time.monotonic_ns() + 5_000_000)
    gone, left = ask()
    bench.dispatcher.submit(late)
    bench.dispatcher.submit(gone)
    bench.dispatcher.cancel(gone)
    assert isinstance((await missed.ended()).error, DeadlinePassed)
    assert [one.outcome for one in bench.seen] == ["internal", "cancelled", "deadline"]
    assert left.times == 0
    bench.may_rebuild.set()
    (good,) = bench.submit()
    await until(lambda: bench.models == 2 and bool(bench.running))
    bench.running[0].complete()
    assert (await good.ended()).error is None
    await bench.closed()


@on_loop
async def test_a_failed_rebuild_is_reported_and_nothing_waits_for_ever() -> None:
    bench = Fragile(1)
    bench.problem = "no memory left"
    bad, waiting = bench.submit(2)
    bench.slots[0].fail("shapes do not fit")
    assert isinstance((await bad.ended()).error, InferenceFailed)
    assert isinstance((await waiting.ended()).error, ModelUnavailable)
    assert bench.dispatcher.device_stats[0].lost.endswith("rebuilding it failed: no memory left")
    with pytest.raises(ModelUnavailable, match="no memory left"):
        bench.submit()
    await bench.closed()


@on_loop
async def test_the_pool_can_be_closed_while_the_model_is_rebuilt() -> None:
    bench = Fragile(2)
    bench.may_rebuild.clear()
    (bad,) = bench.submit()
    bench.running[0].fail("shapes do not fit")
    await bad.ended()
    await until(lambda: bench.pool.rebuilding)
    bench.dispatcher.close()
    closing = asyncio.ensure_future(asyncio.to_thread(bench.pool.close))
    bench.may_rebuild.set()
    assert await closing
    assert bench.pool.freed
    assert all(slot.closed for slot in bench.slots)


@on_loop
async def test_the_same_bad_input_is_told_the_same_without_another_run() -> None:
    bench = Fragile(1)
    for n in range(3):
        request, answer = ask([4, 4, 4, 4])
        bench.dispatcher.submit(request)
        if not n:
            bench.slots[0].fail("shapes do not fit")
        assert str((await answer.ended()).error) == "model 'm': inference failed: shapes do not fit"
    assert bench.pool.rebuilds <= 1
    assert [one.outcome for one in bench.seen] == ["internal"] * 3
    await bench.closed()


@on_loop
async def test_a_client_whose_requests_keep_failing_has_to_wait_and_others_have_not() -> None:
    bench = Fragile(1)
    bench.may_rebuild.clear()
    (bad,) = bench.submit(client="a")
    bench.slots[0].fail("shapes do not fit")
    await bad.ended()
    # The rebuild takes this long.
    asyncio.get_running_loop().call_later(0.4, bench.may_rebuild.set)
    await until(lambda: bench.pool.rebuilds == 1)
    refused, good = (*bench.submit(client="a"), *bench.submit(client="b"))
    assert isinstance((await refused.ended()).error, FailsTooOften)
    bench.running[0].complete()
    assert (await good.ended()).error is None
    await bench.closed()


# -- runs that are given up ------------------------------------------------------------


@on_loop
async def test_an_unwanted_run_may_end_where_that_takes_less_than_a_rebuild() -> None:
    bench = Fragile(1, rebuild_ns=60_000_000_000)
    request, _ = ask()
    bench.dispatcher.submit(request)
    bench.dispatcher.cancel(request)
    (good,) = bench.submit()
    assert bench.slots[0].cancels == 0
    bench.slots[0].complete()
    await until(lambda: bench.slots[0].starts == 2)
    bench.slots[0].complete()
    assert (await good.ended()).error is None
    assert bench.models == 1
    await bench.closed()


@on_loop
async def test_an_unwanted_run_that_takes_longer_is_cancelled_and_the_model_rebuilt() -> None:
    bench = Fragile(1, rebuild_ns=30_000_000)
    request, _ = ask()
    bench.dispatcher.submit(request)
    bench.dispatcher.cancel(request)
    (good,) = bench.submit()
    first = bench.slots[0]
    assert first.cancels == 0
    await until(lambda: bench.models == 2 and bool(bench.running))
    assert first.cancels == 1
    bench.running[0].complete()
    assert (await good.ended()).error is None
    assert [type(one.error) for one in bench.seen] == [Cancelled, type(None)]
    await bench.closed()


# -- real models -----------------------------------------------------------------------


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("path", ["async", "sync"])
@on_loop
async def test_answers_are_right_after_runs_that_failed(tmp_path: Path, path: str, streams: int) -> None:
    kind = KINDS["picked_fixed_rows"]()
    settings = f'[warmup]\nruns = 0\n[execution]\npath = "{path}"\nstreams = {streams}\n'
    (right,) = kind.answers()
    async with RealBench(load(kind.network, tmp_path, settings)) as bench:
        good = [models.tensor(x) for x in kind.good[0].values()]
        for n in range(30):
            request, answer = ask(*good)
            if n % 5 == 0:
                failing, told = ask(*(models.tensor(x * np.float32(n + 1)) for x in kind.bad[n % 3].values()))
                bench.dispatcher.submit(failing)
            bench.dispatcher.submit(request)
            assert (await answer.ended()).error is None
            np.testing.assert_allclose(answer.outputs[0], right, rtol=1e-4)
            assert isinstance((await told.ended()).error, InferenceFailed)


@on_loop
async def test_shapes_that_failed_are_the_clients_own_mistake(tmp_path: Path) -> None:
    kind = KINDS["short_signals"]()
    async with RealBench(load(kind.network, tmp_path, "[warmup]\nruns = 0")) as bench:
        assert bench.loaded.shapes is not None
        dispatcher = Dispatcher(
            DispatchedModel("m", 1, shapes=bench.loaded.shapes),
            SchedulerRules(ROOM),
            [DispatchPool(entry.pool) for entry in bench.loaded.pools],
            observe=bench.seen.append,
        )
        request, answer = ask(models.tensor(kind.bad[0]["x"]))
        dispatcher.submit(request)
        error = (await answer.ended()).error
        assert isinstance(error, InvalidRequest)
        assert "AvgPool" in str(error)
        await dispatcher.drained()
        dispatcher.close()


@on_loop
async def test_the_state_of_other_sequences_outlives_the_renewal(tmp_path: Path) -> None:
    """Its slot holds it, and all slots are others after."""
    pool = load(models.growing(), tmp_path, "[sequences]\nmax_active = 2\n[execution]\nstreams = 1").pools[0].pool
    one = [models.tensor([[1.0, 2.0]])]
    for fresh in (True, False):
        pool.start(0, [one], fresh=fresh)
        await until(lambda: bool(pool.sweep()))
    assert models.numbers(pool.read(0, (0,))[0]).tolist() == [[3, 6]]
    pool.tainted = True
    pool.rebuild()
    await until(lambda: not pool.drain() and not pool.tainted)
    pool.start(0, [one])
    await until(lambda: bool(pool.sweep()))
    assert models.numbers(pool.read(0, (0,))[0]).tolist() == [[4, 8]]
    assert pool.close()


@on_loop
async def test_an_answer_is_not_of_the_shape_of_a_run_that_was_given_up(tmp_path: Path) -> None:
    async with RealBench(load(long_or_short(100), tmp_path, "[execution]\nstreams = 1")) as bench:
        small = models.tensor(np.ones((2, 256), np.float32))
        large = models.tensor(np.ones((3000, 256), np.float32))
        for _ in range(2):
            for x in (small, large):
                request, answer = ask(x)
                bench.dispatcher.submit(request)
                if x is large:
                    await asyncio.sleep(0.02)
                    bench.dispatcher.cancel(request)
                else:
                    assert (await answer.ended()).outputs[0].shape == (2, 256)
            request, answer = ask(small)
            bench.dispatcher.submit(request)
            assert (await answer.ended()).outputs[0].shape == (2, 256)
