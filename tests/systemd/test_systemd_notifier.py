"""What the watchdog expects of a model that is out of service."""

from inferd.health.liveness import Liveness, LivenessRules
from inferd.systemd.systemd_notifier import _activity, _lost
from tests.dispatchers import Bench
from tests.engine.fake_slot import FakeSlot
from tests.event_loop import on_loop, until

GONE = "clFlush, error code: -5 CL_OUT_OF_RESOURCES"
RULES = LivenessRules.within(60)


@on_loop
async def test_a_model_that_fails_slowly_for_hours_does_not_keep_the_watchdog_from_being_fed() -> None:
    bench, liveness = Bench(1), Liveness[str](RULES)
    # Busy at each look: a probe that fails is followed by the next.
    for turn in range(1000):
        (answer,) = bench.submit()
        assert liveness.look(turn * RULES.look, {"m": _activity(bench.dispatcher, unready=True)}).alive
        bench.slots[0][0].fail("wrong weather")
        await answer.ended()


@on_loop
async def test_a_model_that_is_out_of_service_and_hangs_keeps_it_from_being_fed() -> None:
    bench, liveness = Bench(1, slot=lambda on_done: FakeSlot(on_done, deaf=True)), Liveness[str](RULES)
    bench.submit()
    seen = [liveness.look(n * RULES.look, {"m": _activity(bench.dispatcher, unready=True)}).alive for n in range(8)]
    assert seen == [True] * 5 + [False] * 3
    bench.slots[0][0].complete()
    await bench.dispatcher.drained()


@on_loop
async def test_of_a_model_in_service_runs_that_fail_are_no_sign_of_life() -> None:
    bench = Bench(1)
    (answer,) = bench.submit()
    bench.slots[0][0].fail("wrong weather")
    await answer.ended()
    assert _activity(bench.dispatcher, unready=False).completed == 0
    assert _activity(bench.dispatcher, unready=True).completed == 1


@on_loop
async def test_a_device_that_is_lost_is_told_from_one_that_hangs() -> None:
    bench = Bench(1, 1)
    bench.dispatcher.disable_device(0, GONE)
    assert not _lost(bench.dispatcher)
    bench.dispatcher.disable_device(1, GONE)
    assert _lost(bench.dispatcher)
    bench.dispatcher.device_stats[1].wedged = GONE
    assert not _lost(bench.dispatcher)
    await until(lambda: bench.dispatcher.scheduler.in_flight == 0)
