"""The dispatcher ends each request exactly once, on a real event loop, over fake and real slots."""

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from inferd.errors import DeadlinePassed, Draining, Evicted, InferenceFailed, InternalFault, QueueFull
from inferd.requests import Request
from inferd.scheduling.fairness import SharedDevice
from inferd.scheduling.rules import QueueLimits
from inferd.scheduling.sweeps import LONGEST as SWEEP_NS
from inferd.tensors import DType, Tensor
from tests.dispatchers import Bench, RealBench, load
from tests.engine import models
from tests.engine.fake_slot import FakeSlot
from tests.engine.models import tensor
from tests.event_loop import on_loop, until
from tests.replies import Answer, ask


def after(milliseconds: float) -> int:
    return time.monotonic_ns() + int(milliseconds * 1e6)


def deaf(on_done: Callable[[], None]) -> FakeSlot:
    return FakeSlot(on_done, deaf=True)


# -- the plain way -------------------------------------------------------------------


@on_loop
async def test_a_request_is_answered_with_its_outputs_and_recorded_with_its_stages() -> None:
    bench = Bench(1)
    request, answer = ask([5, 6])
    request.id, request.rows = "r1", 2
    request.stages.received = time.monotonic_ns()
    bench.dispatcher.submit(request)
    bench.slots[0][0].complete()

    assert (await answer.ended()).outputs[0].tolist() == [5, 6]
    (seen,) = bench.seen
    assert (seen.model, seen.version, seen.outcome, seen.device) == ("m", "3", "ok", "CPU.0")
    assert (seen.id, seen.rows, seen.error) == ("r1", 2, None)
    stages = ("received", "queued", "started", "submitted", "computed", "taken", "copied", "answered")
    reached = [getattr(seen.stages, stage) for stage in stages]
    assert reached == sorted(reached)
    assert all(reached)


@on_loop
async def test_a_slot_is_refilled_at_its_completion_whatever_the_others_do() -> None:
    # Trap 4: in lock-step, streams wait for the slowest of their round.
    bench = Bench(2)
    answers = bench.submit(4)
    for finished in range(3):
        bench.slots[0][0].complete()
        await answers[(0, 2, 3)[finished]].ended()
        assert bench.slots[0][1].running
        assert bench.slots[0][0].starts == min(finished + 2, 3)
    assert answers[1].times == 0
    bench.slots[0][1].complete()
    await answers[1].ended()
    assert bench.outcomes() == ["ok"] * 4


@on_loop
async def test_a_failed_run_is_answered_though_no_callback_tells_of_it() -> None:
    bench = Bench(1)
    first, second = bench.submit(2)
    bench.slots[0][0].fail("the shapes do not fit")

    assert isinstance((await first.ended()).error, InferenceFailed)
    assert str(first.error) == "model 'm': inference failed: the shapes do not fit"
    bench.slots[0][0].complete()
    assert (await second.ended()).error is None
    assert bench.outcomes() == ["internal", "ok"]


# -- refusals ------------------------------------------------------------------------


@on_loop
async def test_what_is_refused_is_neither_held_nor_recorded() -> None:
    bench = Bench(1, limits=QueueLimits(1, 1000))
    bench.submit(2)
    with pytest.raises(QueueFull):
        bench.submit()
    with pytest.raises(DeadlinePassed):
        bench.submit(deadline=after(-1))
    assert (bench.dispatcher.scheduler.running, bench.dispatcher.scheduler.waiting, bench.seen) == (1, 1, [])


@on_loop
async def test_who_made_room_for_a_more_important_request_is_told() -> None:
    bench = Bench(1, limits=QueueLimits(1, 1000))
    bench.submit()
    (waiting,) = bench.submit()
    important, answer = ask(priority=1)
    bench.dispatcher.submit(important)

    assert isinstance((await waiting.ended()).error, Evicted)
    assert (bench.dispatcher.scheduler.waiting, bench.outcomes()) == (1, [Evicted.outcome])
    for _ in range(2):
        await until(lambda: bench.slots[0][0].running)
        bench.slots[0][0].complete()
        await asyncio.sleep(0)
    assert (await answer.ended()).error is None
    await bench.dispatcher.drained()
    assert bench.outcomes() == [Evicted.outcome, "ok", "ok"]


@on_loop
async def test_who_made_room_is_told_also_where_it_was_not_enough() -> None:
    bench = Bench(1, limits=QueueLimits(10, 40))
    bench.submit()
    (lesser,) = bench.submit()
    equal, _ = ask(priority=1)
    bench.dispatcher.submit(equal)
    with pytest.raises(QueueFull):
        bench.dispatcher.submit(ask([0] * 8, priority=1)[0])

    assert lesser.times == 1
    assert isinstance(lesser.error, Evicted)
    assert bench.dispatcher.scheduler.waiting == 1
    bench.dispatcher.abort(Draining())
    await bench.dispatcher.drained()


@on_loop
async def test_a_run_that_can_not_begin_is_answered_and_its_slot_taken_by_the_next() -> None:
    bench = Bench(1)
    (running,) = bench.submit()
    refused, next_one = bench.submit(2)
    bench.slots[0][0].refuses_to_start = "no memory on the device"
    bench.slots[0][0].complete()

    assert str((await refused.ended()).error) == "model 'm': inference failed: no memory on the device"
    await running.ended()
    assert bench.slots[0][0].running
    bench.slots[0][0].complete()
    assert (await next_one.ended()).error is None
    await bench.dispatcher.drained()
    assert sorted(bench.outcomes()) == ["internal", "ok", "ok"]


@on_loop
async def test_whatever_copying_trips_over_does_not_take_the_slot_with_it() -> None:
    class OutOfMemoryOnce(FakeSlot):
        def write(self, members: Sequence[Sequence[Tensor]]) -> None:
            if not self.starts and not self.cancels:
                self.cancels += 1
                raise MemoryError
            super().write(members)

    bench = Bench(1, slot=OutOfMemoryOnce)
    with capture_logs() as logged:
        (lost,) = bench.submit()
    assert isinstance((await lost.ended()).error, InternalFault)
    assert [entry["event"] for entry in logged] == ["run not started"]

    (kept,) = bench.submit()
    bench.slots[0][0].complete()
    assert (await kept.ended()).error is None
    assert bench.outcomes() == ["internal", "ok"]


@on_loop
async def test_an_answer_that_can_not_be_encoded_is_our_fault_and_gives_the_slot_back() -> None:
    bench = Bench(1)
    request, broken = ask(breaks=True)
    bench.dispatcher.submit(request)
    (next_one,) = bench.submit()
    with capture_logs() as logged:
        bench.slots[0][0].complete()
        assert isinstance((await broken.ended()).error, InternalFault)
    assert [entry["event"] for entry in logged] == ["response not encoded"]

    bench.slots[0][0].complete()
    assert (await next_one.ended()).error is None
    assert bench.outcomes() == ["internal", "ok"]


# -- deadlines -----------------------------------------------------------------------


@on_loop
async def test_a_deadline_is_answered_when_it_passes_and_not_when_the_run_ends() -> None:
    bench = Bench(1, slot=deaf)
    (answer,) = bench.submit(deadline=after(5))

    assert str((await answer.ended()).error) == "model 'm': deadline passed while the request was running"
    slot = bench.slots[0][0]
    assert slot.running
    assert slot.cancels == 1
    # The slot belongs to the run until that has really ended.
    (next_one,) = bench.submit()
    assert (bench.dispatcher.scheduler.running, bench.dispatcher.scheduler.waiting, slot.starts) == (1, 1, 1)
    slot.complete()
    await until(lambda: slot.starts == 2)
    slot.complete()
    assert (await next_one.ended()).error is None
    assert answer.times == 1
    assert bench.outcomes() == ["deadline", "ok"]


@on_loop
async def test_a_deadline_that_passes_in_line_is_answered_there() -> None:
    bench = Bench(1)
    (running,) = bench.submit()
    (late,) = bench.submit(deadline=after(5))

    assert str((await late.ended()).error).endswith("deadline passed while the request was waiting in the queue")
    bench.slots[0][0].complete()
    await running.ended()
    await bench.dispatcher.drained()
    assert bench.slots[0][0].starts == 1


@on_loop
async def test_an_earlier_deadline_that_comes_later_is_not_missed() -> None:
    bench = Bench(1)
    bench.submit(deadline=after(20_000))
    bench.submit(deadline=after(15_000))
    # Sooner than the look that is due anyway.
    (soon,) = bench.submit(deadline=after(SWEEP_NS / 2e6))
    assert bench.dispatcher._timer_at <= after(SWEEP_NS / 2e6)
    assert isinstance((await soon.ended()).error, DeadlinePassed)
    bench.dispatcher.abort(Draining())
    await bench.dispatcher.drained()


# -- clients that go away ------------------------------------------------------------


@on_loop
async def test_a_client_that_goes_away_leaves_the_line() -> None:
    bench = Bench(1)
    bench.submit()
    request, answer = ask()
    bench.dispatcher.submit(request)
    bench.dispatcher.cancel(request)

    assert bench.dispatcher.scheduler.waiting == 0
    assert bench.outcomes() == ["cancelled"]
    assert answer.times == 0
    bench.slots[0][0].complete()
    await bench.dispatcher.drained()
    assert bench.slots[0][0].starts == 1


@on_loop
async def test_a_client_that_goes_away_has_its_run_cancelled() -> None:
    bench = Bench(1)
    request, answer = ask()
    bench.dispatcher.submit(request)
    (next_one,) = bench.submit()
    bench.dispatcher.cancel(request)
    bench.dispatcher.cancel(request)

    assert bench.slots[0][0].cancels == 1
    await until(lambda: bench.slots[0][0].starts == 2)
    bench.slots[0][0].complete()
    await next_one.ended()
    assert answer.times == 0
    assert bench.outcomes() == ["cancelled", "ok"]


@on_loop
async def test_a_client_that_goes_away_as_its_deadline_passes_counts_as_late() -> None:
    bench = Bench(1)
    request, _ = ask(deadline=after(1))
    bench.dispatcher.submit(request)
    bench.dispatcher.cancel(request)
    await bench.dispatcher.drained()
    assert bench.outcomes() == ["deadline"]


@on_loop
async def test_cancelling_what_has_ended_is_harmless() -> None:
    bench = Bench(1)
    request, answer = ask()
    bench.dispatcher.submit(request)
    bench.slots[0][0].complete()
    await answer.ended()
    bench.dispatcher.cancel(request)
    assert bench.outcomes() == ["ok"]


@on_loop
async def test_a_run_that_completes_as_its_client_goes_away_is_not_answered() -> None:
    bench = Bench(1)
    request, answer = ask()
    bench.dispatcher.submit(request)
    bench.slots[0][0].complete()
    bench.dispatcher.cancel(request)
    await bench.dispatcher.drained()
    assert answer.times == 0
    assert bench.outcomes() == ["cancelled"]


# -- the end -------------------------------------------------------------------------


@on_loop
async def test_drained_means_that_nothing_waits_and_nothing_runs() -> None:
    bench = Bench(1)
    await bench.dispatcher.drained()
    bench.submit(2)
    drained = asyncio.ensure_future(bench.dispatcher.drained())
    bench.slots[0][0].complete()
    await until(lambda: bench.slots[0][0].starts == 2)
    assert not drained.done()
    bench.slots[0][0].complete()
    await drained
    assert (bench.dispatcher.scheduler.running, bench.dispatcher.scheduler.waiting) == (0, 0)


@on_loop
async def test_abort_answers_everything_and_cancels_what_runs() -> None:
    bench = Bench(2)
    answers = bench.submit(5)
    bench.dispatcher.abort(Draining())

    assert [type(a.error) for a in answers] == [Draining] * 5
    assert [slot.cancels for slot in bench.slots[0]] == [1, 1]
    await bench.dispatcher.drained()
    assert [a.times for a in answers] == [1] * 5
    assert bench.outcomes() == ["unavailable"] * 5


@on_loop
async def test_a_closed_dispatcher_looks_at_its_pools_no_more() -> None:
    bench = Bench(1)
    (answer,) = bench.submit()
    bench.dispatcher.close()
    bench.slots[0][0].complete()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert answer.times == 0
    assert bench.dispatcher._timer is None


# -- several pools -------------------------------------------------------------------


@on_loop
async def test_requests_go_to_the_device_that_is_done_first() -> None:
    # The first pool as a GPU: four times as fast as the second.
    bench = Bench(1, 1, service_times=[1e9, 4e9])
    asked = [ask() for _ in range(5)]
    for request, _ in asked:
        bench.dispatcher.submit(request)

    assert [request.device for request, _ in asked] == ["CPU.0", "", "", "", "CPU.1"]
    bench.slots[0][0].complete()
    await asked[0][1].ended()
    assert [request.device for request, _ in asked] == ["CPU.0", "CPU.0", "", "", "CPU.1"]
    bench.dispatcher.abort(Draining())
    await bench.dispatcher.drained()


@on_loop
async def test_a_fast_device_that_hangs_does_not_hold_what_waits() -> None:
    bench = Bench(1, 1, service_times=[1e6, 5e6])
    bench.submit()
    waiting, answer = ask()
    bench.dispatcher.submit(waiting)
    assert waiting.device == ""
    await until(lambda: waiting.device != "")
    assert waiting.device == "CPU.1"
    bench.slots[1][0].complete()
    await answer.ended()
    bench.dispatcher.abort(Draining())
    await bench.dispatcher.drained()


# -- everything at once --------------------------------------------------------------


@on_loop
async def test_each_request_is_recorded_once_whatever_becomes_of_it() -> None:
    dice = random.Random(5)
    bench = Bench(2, 3, limits=QueueLimits(20, 1 << 20))
    asked = []
    for _ in range(600):
        request, answer = ask(deadline=after(dice.choice([0.2, 1, 50])) if dice.random() < 0.3 else None)
        request.id = str(len(asked))
        with suppress(QueueFull, DeadlinePassed):
            bench.dispatcher.submit(request)
            asked.append((request, answer))
        if dice.random() < 0.2:
            bench.dispatcher.cancel(dice.choice(asked)[0])
        for slot in [slot for slot in bench.running if dice.random() < 0.3]:
            slot.complete() if dice.random() < 0.7 else slot.fail("bad luck")
        await asyncio.sleep(0)
    bench.dispatcher.abort(Draining())
    await bench.dispatcher.drained()

    assert sorted(seen.id for seen in bench.seen) == sorted(request.id for request, _ in asked)
    outcomes = set(bench.outcomes())
    assert {"ok", "internal", "deadline", "cancelled"} <= outcomes
    answered = {seen.id: int(seen.outcome != "cancelled") for seen in bench.seen if seen.outcome != "deadline"}
    assert {request.id: answer.times for request, answer in asked if request.id in answered} == answered


# -- real models ---------------------------------------------------------------------


@on_loop
async def test_several_producers_on_several_devices_each_get_their_own_answer(tmp_path: Path) -> None:
    loaded = load(models.scaled(2), tmp_path, 'devices = ["CPU", "AUTO:CPU"]\n[execution]\ninfer_requests = 2')
    async with RealBench(loaded) as bench:
        loop = asyncio.get_running_loop()
        asked = [ask([n, n + 1, n + 2, n + 3]) for n in range(800)]

        def produce(mine: Sequence[tuple[Request, Answer]]) -> None:
            for request, _ in mine:
                loop.call_soon_threadsafe(bench.dispatcher.submit, request)

        producers = [threading.Thread(target=produce, args=(asked[n::4],)) for n in range(4)]
        for producer in producers:
            producer.start()
        for n, (_, answer) in enumerate(asked):
            assert (await answer.ended()).error is None
            assert answer.outputs[0].tolist() == [2 * n, 2 * n + 2, 2 * n + 4, 2 * n + 6]
        for producer in producers:
            producer.join()
        assert Counter(seen.outcome for seen in bench.seen) == {"ok": 800}


@on_loop
async def test_real_runs_that_fail_are_told_apart_from_those_that_do_not(tmp_path: Path) -> None:
    loaded = load(models.broadcasting(), tmp_path, "[warmup]\nruns = 0\n[execution]\ninfer_requests = 3")
    async with RealBench(loaded) as bench:
        good, bad = tensor([2, 4], DType.INT64), tensor([3, 2], DType.INT64)
        asked = [ask([n] * 4, bad if n % 5 == 0 else good) for n in range(60)]
        for request, _ in asked:
            bench.dispatcher.submit(request)
        for n, (_, answer) in enumerate(asked):
            await answer.ended()
            if n % 5 == 0:
                assert isinstance(answer.error, InferenceFailed)
            else:
                assert answer.outputs[0].tolist() == [[n] * 4] * 2
        assert Counter(seen.outcome for seen in bench.seen) == {"ok": 48, "internal": 12}


@on_loop
async def test_a_real_run_past_its_deadline_is_answered_and_then_cancelled(tmp_path: Path) -> None:
    loaded = load(models.slow(), tmp_path, "[warmup]\nruns = 1\n[execution]\ninfer_requests = 1\nthreads = 1")
    # A dispatcher that knew how long it takes would refuse the deadline on arrival.
    async with RealBench(loaded, learnt=False) as bench:
        wide = tensor(np.zeros((256, 256)))
        late, late_answer = ask(wide, deadline=after(3))
        bench.dispatcher.submit(late)
        gone, _ = ask(wide)
        bench.dispatcher.submit(gone)
        last, last_answer = ask(wide)
        bench.dispatcher.submit(last)

        assert isinstance((await late_answer.ended()).error, DeadlinePassed)
        await until(lambda: gone.device != "")
        bench.dispatcher.cancel(gone)
        assert (await last_answer.ended()).error is None
        assert [seen.outcome for seen in bench.seen] == ["deadline", "cancelled", "ok"]


# -- several models on one device ----------------------------------------------------


@on_loop
async def test_models_that_share_a_device_all_get_on() -> None:
    device = SharedDevice()
    both = [Bench(2, share=device.join(weight, 0.5)) for weight in (1.0, 3.0)]
    answers = [answer for bench in both for answer in bench.submit(20)]
    while any(answer.times == 0 for answer in answers):
        for slot in [slot for bench in both for slot in bench.running]:
            slot.complete()
        await asyncio.sleep(0)
    for bench in both:
        await bench.dispatcher.drained()
        assert bench.outcomes() == ["ok"] * 20


@on_loop
async def test_a_model_that_had_more_than_its_part_goes_on_once_the_other_is_done() -> None:
    device = SharedDevice()
    # At this weight any time at all is far more than its part.
    greedy, modest = (device.join(weight, 1.0) for weight in (1e-6, 1e3))
    ahead, behind = Bench(1, share=greedy), Bench(1, share=modest)
    looked_again: list[None] = []
    wake = greedy.wake
    greedy.wake = lambda: (looked_again.append(None), wake())[1]

    first, second = ahead.submit(2)
    answers = behind.submit(3)
    ahead.slots[0][0].complete()
    await first.ended()
    for answer in answers[:2]:
        assert ahead.slots[0][0].starts == 1
        assert ahead.dispatcher.scheduler.waiting == 1
        behind.slots[0][0].complete()
        await answer.ended()
    # The last of the other's requests runs, and none waits any more.
    await until(lambda: ahead.slots[0][0].starts == 2)
    assert looked_again
    assert behind.slots[0][0].running
    for bench, answer in ((behind, answers[2]), (ahead, second)):
        bench.slots[0][0].complete()
        assert (await answer.ended()).error is None


@on_loop
async def test_a_model_that_is_gone_delays_no_other() -> None:
    device = SharedDevice()
    ahead, behind = (Bench(1, share=device.join(weight, 1.0)) for weight in (1e-6, 1e3))
    first, second = ahead.submit(2)
    behind.submit(2)
    ahead.slots[0][0].complete()
    await first.ended()
    assert ahead.slots[0][0].starts == 1

    behind.dispatcher.abort(Draining())
    behind.dispatcher.close()
    behind.dispatcher.close()
    await until(lambda: ahead.slots[0][0].starts == 2)
    ahead.slots[0][0].complete()
    assert (await second.ended()).error is None
