"""Whatever a device does, every request is answered once, and what can go on does."""

import asyncio
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from inferd.errors import DeadlinePassed, Draining, InferenceFailed, ModelUnavailable, QueueFull
from inferd.scheduling.batching import BatchRule
from inferd.scheduling.hangs import HangRule
from inferd.scheduling.rules import QueueLimits, SchedulerRules
from tests.dispatchers import ROOM, Bench
from tests.engine.fake_slot import FakeSlot
from tests.event_loop import on_loop, until
from tests.replies import ask, row

GONE = "[GPU] clFlush, error code: -5 CL_OUT_OF_RESOURCES"
SOON = HangRule(20_000_000, 5_000_000)


def deaf(on_done: Callable[[], None]) -> FakeSlot:
    return FakeSlot(on_done, deaf=True)


def impatient(*sizes: int, slot: Callable[[Callable[[], None]], FakeSlot] = deaf, **rules: object) -> Bench:
    """A bench whose runs may take 20 ms, and then have 5 ms to end."""
    return Bench(*sizes, rules=SchedulerRules(ROOM, hangs=SOON, **rules), slot=slot)  # type: ignore[arg-type]


async def closed(bench: Bench) -> None:
    """End it with what still hangs there."""
    bench.dispatcher.abort(Draining())
    bench.dispatcher.close()
    for slot in bench.running:
        slot.complete()
    for pool in bench.dispatcher._pools:
        assert await asyncio.to_thread(pool.close)


# -- runs that do not end --------------------------------------------------------------


@on_loop
async def test_a_run_that_hangs_is_answered_and_its_slot_is_replaced() -> None:
    bench = impatient(1)
    hung, waiting = bench.submit(2)
    assert isinstance((await hung.ended()).error, InferenceFailed)
    assert re.search(r"the run did not end within [\d.]+ s and was given up", str(hung.error))

    await until(lambda: len(bench.slots[0]) == 2 and bench.slots[0][1].running)
    bench.slots[0][1].complete()
    assert (await waiting.ended()).error is None
    assert (hung.times, waiting.times) == (1, 1)
    assert bench.outcomes() == ["internal", "ok"]
    assert (bench.dispatcher.device_stats[0].hung, bench.dispatcher.device_stats[0].succeeded) == (1, 1)
    await closed(bench)


@on_loop
async def test_a_run_that_hangs_is_answered_at_its_deadline_where_that_is_sooner() -> None:
    bench = impatient(1)
    request, answer = ask(deadline=time.monotonic_ns() + 2_000_000)
    bench.dispatcher.submit(request)
    assert isinstance((await answer.ended()).error, DeadlinePassed)
    await until(lambda: len(bench.slots[0]) == 2)
    assert bench.outcomes() == ["deadline"]
    await closed(bench)


@on_loop
async def test_a_run_that_ends_once_it_was_cancelled_keeps_its_slot() -> None:
    bench = impatient(1, slot=FakeSlot)
    hung, waiting = bench.submit(2)
    await hung.ended()
    await until(lambda: bench.slots[0][0].starts == 2)
    bench.slots[0][0].complete()
    assert (await waiting.ended()).error is None
    assert len(bench.slots[0]) == 1


@on_loop
async def test_a_slow_run_that_ends_in_time_is_not_given_up() -> None:
    bench = Bench(1, rules=SchedulerRules(ROOM, hangs=HangRule()), slot=deaf)
    (answer,) = bench.submit()
    # Many looks of the reaper go by.
    await asyncio.sleep(0.1)
    bench.slots[0][0].complete()
    assert (await answer.ended()).error is None
    assert bench.dispatcher.device_stats[0].hung == 0


@on_loop
async def test_the_late_end_of_a_run_that_was_given_up_answers_nobody() -> None:
    bench = impatient(1)
    hung, waiting = bench.submit(2)
    await hung.ended()
    await until(lambda: len(bench.slots[0]) == 2 and bench.slots[0][1].running)
    bench.slots[0][0].complete()
    await asyncio.sleep(0)
    assert (hung.times, waiting.times) == (1, 0)
    bench.slots[0][1].complete()
    assert (await waiting.ended()).error is None


@on_loop
async def test_batched_requests_of_a_run_that_hangs_are_each_answered_once() -> None:
    bench = impatient(1, batch=BatchRule(4))
    asked = [row(n) for n in range(4)]
    first, *others = asked
    for request, _ in asked:
        bench.dispatcher.submit(request)
    await first[1].ended()
    await until(lambda: len(bench.slots[0]) == 2 and bench.slots[0][1].running)
    bench.slots[0][1].complete()
    for _, answer in others:
        await answer.ended()
    assert [answer.times for _, answer in asked] == [1] * 4
    await closed(bench)


@on_loop
async def test_a_device_on_which_everything_hangs_is_used_no_more() -> None:
    bench = impatient(1)
    health_changes: list[int] = []
    bench.dispatcher.on_health_change = lambda: health_changes.append(len(bench.seen))
    answers = bench.submit(4)
    for answer in answers:
        await answer.ended()

    # One hung, the slot in its place too, and then there was none left to put there.
    assert [type(answer.error) for answer in answers] == [InferenceFailed] * 2 + [ModelUnavailable] * 2
    assert str(answers[3].error) == ("model 'm' is failed: CPU.0: 1 runs hang and were left behind, as many as may be")
    assert [answer.times for answer in answers] == [1] * 4
    assert health_changes
    with pytest.raises(ModelUnavailable):
        bench.submit()
    await closed(bench)


@on_loop
async def test_while_one_slot_can_not_be_replaced_the_others_go_on() -> None:
    made: list[FakeSlot] = []

    def two_only(on_done: Callable[[], None]) -> FakeSlot:
        if len(made) == 2:
            raise RuntimeError("no memory on the device")
        made.append(FakeSlot(on_done, deaf=True))
        return made[-1]

    bench = impatient(2, slot=two_only)
    (hung,) = bench.submit()
    await hung.ended()
    await until(lambda: bench.dispatcher.device_stats[0].wedged != "")
    assert bench.dispatcher.device_stats[0].wedged.endswith("can't be made: no memory on the device")
    assert bench.dispatcher.device_stats[0].lost == ""
    (answer,) = bench.submit()
    next(slot for slot in made if slot.running and slot.cancels == 0).complete()
    assert (await answer.ended()).error is None
    await closed(bench)


@on_loop
async def test_while_runs_that_hang_hold_all_there_is_that_is_told_and_its_end_too() -> None:
    bench = Bench(1, 1, rules=SchedulerRules(ROOM, hangs=HangRule(1_000_000, 3_600_000_000_000)), slot=deaf)
    health_changes: list[float | None] = []
    bench.dispatcher.on_health_change = lambda: health_changes.append(bench.dispatcher.stalled)
    first, second, waiting = bench.submit(3)
    assert bench.dispatcher.stalled is None
    for answer in (first, second):
        await answer.ended()
    await until(lambda: health_changes[-1:] != [] and health_changes[-1] is not None)

    bench.slots[1][0].complete()
    await until(lambda: health_changes[-1] is None)
    assert bench.dispatcher.stalled is None
    bench.slots[1][0].complete()
    assert (await waiting.ended()).error is None
    assert [answer.times for answer in (first, second, waiting)] == [1] * 3
    await closed(bench)


@on_loop
async def test_infer_requests_that_others_take_the_place_of_are_counted() -> None:
    bench = impatient(1)
    hung, waiting = bench.submit(2)
    await hung.ended()
    await until(lambda: len(bench.slots[0]) == 2 and bench.slots[0][1].running)
    bench.slots[0][1].complete()
    await waiting.ended()
    assert (bench.dispatcher.device_stats[0].hung, bench.dispatcher.device_stats[0].replaced) == (1, 1)
    await closed(bench)


# -- runs that fail, and devices that are gone -----------------------------------------


@on_loop
async def test_runs_that_fail_are_told_apart_from_those_that_somebody_gave_up() -> None:
    bench = Bench(1)
    (answer,) = bench.submit()
    bench.slots[0][0].fail("out of luck")
    await answer.ended()
    request, _ = ask()
    bench.dispatcher.submit(request)
    bench.dispatcher.cancel(request)
    await bench.dispatcher.drained()
    assert (bench.dispatcher.device_stats[0].failed, bench.dispatcher.device_stats[0].lost) == (1, "")


@on_loop
async def test_requests_of_a_device_that_is_lost_are_answered_by_another() -> None:
    bench = Bench(1, 1)
    answers = bench.submit(3)
    bench.slots[0][0].fail(GONE)
    for _ in answers:
        await until(lambda: bench.slots[1][0].running)
        bench.slots[1][0].complete()
        await asyncio.sleep(0)
    assert [(await answer.ended()).error for answer in answers] == [None] * 3
    assert bench.outcomes() == ["ok"] * 3
    assert [stats.lost for stats in bench.dispatcher.device_stats] == [GONE, ""]
    assert bench.slots[0][0].starts == 1


@pytest.mark.parametrize("begins", [True, False], ids=["while it ran", "at its start"])
@on_loop
async def test_without_another_device_requests_are_told_that_it_is_lost(begins: bool) -> None:
    bench = Bench(1, slot=deaf)
    health_changes: list[None] = []
    bench.dispatcher.on_health_change = lambda: health_changes.append(None)
    first, *answers = bench.submit(4)
    if begins:
        bench.slots[0][0].complete()
        await first.ended()
        bench.slots[0][0].fail(GONE)
    else:
        bench.slots[0][0].refuses_to_start = GONE
        bench.slots[0][0].complete()
    for answer in answers:
        assert str((await answer.ended()).error) == f"model 'm' is failed: CPU.0: {GONE}"
    assert [type(answer.error) for answer in answers] == [ModelUnavailable] * 3
    assert health_changes
    with pytest.raises(ModelUnavailable, match="CL_OUT_OF_RESOURCES"):
        bench.submit()
    await bench.dispatcher.drained()
    assert sorted(bench.outcomes()) == ["ok"] + ["unavailable"] * 3


# -- clocks ----------------------------------------------------------------------------


@on_loop
async def test_a_jump_of_the_wall_clock_changes_no_deadline() -> None:
    wall, bench = time.time, impatient(1)
    jump = random.Random(1)
    time.time = lambda: wall() + jump.uniform(-1e9, 1e9)
    try:
        hung, waiting = bench.submit(2)
        request, late = ask(deadline=time.monotonic_ns() + 2_000_000)
        bench.dispatcher.submit(request)
        assert isinstance((await late.ended()).error, DeadlinePassed)
        assert hung.times == 0
        await hung.ended()
        await until(lambda: len(bench.slots[0]) == 2 and bench.slots[0][1].running)
        bench.slots[0][1].complete()
        assert (await waiting.ended()).error is None
    finally:
        time.time = wall
    assert bench.outcomes() == ["deadline", "internal", "ok"]
    await closed(bench)


# -- everything at once ----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@on_loop
async def test_each_request_is_answered_once_whatever_devices_do(seed: int) -> None:
    dice = random.Random(seed)
    bench = Bench(
        2,
        3,
        rules=SchedulerRules(QueueLimits(20, 1 << 20), hangs=HangRule(3_000_000, 1_000_000)),
        slot=lambda on_done: FakeSlot(on_done, deaf=dice.random() < 0.5),
    )
    asked = []
    for turn in range(600):
        deadline = time.monotonic_ns() + dice.choice([200_000, 5_000_000]) if dice.random() < 0.3 else None
        request, answer = ask(deadline=deadline)
        request.id = str(turn)
        with suppress(QueueFull, DeadlinePassed, ModelUnavailable):
            bench.dispatcher.submit(request)
            asked.append((request, answer))
        for slot in [slot for slot in bench.running if dice.random() < 0.2]:
            with suppress(AssertionError):  # its run has just ended by itself
                slot.complete() if dice.random() < 0.8 else slot.fail("bad luck")
        if turn == 400:
            bench.dispatcher.disable_device(0, GONE)
        await asyncio.sleep(0.0001 if turn % 3 else 0)
    bench.dispatcher.abort(Draining())
    for _, answer in asked:
        await answer.ended()

    assert len(asked) > 200
    assert [answer.times for _, answer in asked] == [1] * len(asked)
    assert sorted(seen.id for seen in bench.seen) == sorted(request.id for request, _ in asked)
    assert bench.dispatcher.device_stats[0].hung + bench.dispatcher.device_stats[1].hung > 0
    await closed(bench)
