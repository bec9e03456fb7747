"""A dispatcher's observations of a version, and the watchdog's expectations of a version out of service."""

from inferd.health.health import HealthRules, HealthState, HealthTracker
from inferd.health.liveness import LivenessRules
from inferd.health.probes import ProbeOutcome
from inferd.supervision.observation import observed
from tests.dispatchers import Bench
from tests.effort import examples
from tests.engine.fake_slot import FakeSlot
from tests.event_loop import on_loop, until

GONE = "clFlush, error code: -5 CL_OUT_OF_RESOURCES"
RULES = LivenessRules.within(60)


def out_of_service(bench: Bench) -> HealthTracker:
    """The health of a version that failed its probes until second 0."""
    health, now = HealthTracker(HealthRules(liveness=RULES), -100.0), -100.0
    for outcome in (ProbeOutcome.OK, ProbeOutcome.FAILED, ProbeOutcome.FAILED):
        while health.look(now, observed(bench.dispatcher)) is None:
            now += 1.0
        health.ended(now, outcome)
    assert now < 0.0
    assert health.state is HealthState.FAILED
    return health


def alive(health: HealthTracker, bench: Bench, now: float, outcome: ProbeOutcome = ProbeOutcome.UNANSWERED) -> bool:
    """Whether a look at second ``now`` finds that the version answers; a probe that is due ends as ``outcome``."""
    if health.look(now, observed(bench.dispatcher)) is not None:
        health.ended(now, outcome)
    return health.silent_for(now) is None


@on_loop
async def test_a_model_that_fails_slowly_for_hours_does_not_keep_the_watchdog_from_being_fed() -> None:
    bench = Bench(1)
    health = out_of_service(bench)
    # Busy at each look: a probe that fails is followed by the next.
    for turn in range(examples(1000)):
        (answer,) = bench.submit()
        assert alive(health, bench, turn * RULES.look, ProbeOutcome.FAILED)
        bench.slots[0][0].fail("wrong weather")
        await answer.ended()
    assert health.state is HealthState.FAILED


@on_loop
async def test_a_model_that_is_out_of_service_and_hangs_keeps_it_from_being_fed() -> None:
    bench = Bench(1, slot=lambda on_done: FakeSlot(on_done, deaf=True))
    health = out_of_service(bench)
    bench.submit()
    seen = [alive(health, bench, n * RULES.look) for n in range(8)]
    assert seen == [True] * 5 + [False] * 3
    bench.slots[0][0].complete()
    await bench.dispatcher.drained()


@on_loop
async def test_of_a_model_in_service_runs_that_fail_are_no_sign_of_life() -> None:
    bench = Bench(2, slot=lambda on_done: FakeSlot(on_done, deaf=True))
    in_service, unready = HealthTracker(HealthRules(probe_interval=0.0, liveness=RULES), 0.0), out_of_service(bench)
    answer, _ = bench.submit(2)
    assert alive(in_service, bench, 0.0)
    assert alive(unready, bench, 0.0)
    bench.slots[0][0].fail("wrong weather")
    await answer.ended()
    seen = observed(bench.dispatcher)
    assert (seen.well, seen.failed, seen.busy) == (0, 1, True)
    looks = [n * RULES.look for n in range(1, 7)]
    assert [alive(in_service, bench, now) for now in looks] == [True] * 4 + [False] * 2
    assert [alive(unready, bench, now) for now in looks] == [True] * 5 + [False]
    bench.slots[0][1].complete()
    await bench.dispatcher.drained()


@on_loop
async def test_a_device_that_is_lost_is_told_from_one_that_hangs() -> None:
    bench = Bench(1, 1)
    bench.dispatcher.disable_device(0, GONE)
    seen = observed(bench.dispatcher)
    assert (seen.gone, seen.lost) == ("", f"CPU.0 is disabled: {GONE}")
    bench.dispatcher.disable_device(1, GONE)
    seen = observed(bench.dispatcher)
    assert (seen.gone, seen.hangs) == (f"CPU.0: {GONE}; CPU.1: {GONE}", False)
    bench.dispatcher.device_stats[1].wedged = GONE
    assert observed(bench.dispatcher).hangs
    await until(lambda: bench.dispatcher.scheduler.in_flight == 0)


@on_loop
async def test_a_version_that_lost_its_device_owes_nothing_and_one_that_hangs_there_does() -> None:
    for wedged in ("", GONE):
        bench = Bench(1, slot=lambda on_done: FakeSlot(on_done, deaf=True))
        health = HealthTracker(HealthRules(probe_interval=0.0, liveness=RULES), 0.0)
        bench.submit()
        bench.dispatcher.disable_device(0, GONE)
        bench.dispatcher.device_stats[0].wedged = wedged
        assert observed(bench.dispatcher).busy
        seen = [alive(health, bench, n * RULES.look) for n in range(8)]
        assert seen == [True] * 5 + [not wedged] * 3
        bench.slots[0][0].complete()
        await until(lambda: not bench.dispatcher.scheduler.running)  # noqa: B023 - asked before the next turn
