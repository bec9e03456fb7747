"""Which version is silent: the rule by example, and by random walks of a model that works, rests, hangs or fails."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.health.health import HealthObservation, HealthRules, HealthState, HealthTracker
from inferd.health.liveness import LivenessRules
from inferd.health.probes import ProbeOutcome, ProbeTrust

RULES = LivenessRules.within(12.0)
LOOK = RULES.look
# Nothing but the watchdog asks for probes.
ALONE = HealthRules(probe_interval=0.0, liveness=RULES)
WITH_READINESS = HealthRules(probe_interval=30.0, retry_interval=5.0, probe_timeout=10.0, liveness=RULES)


@dataclass(frozen=True)
class Report:
    """What a look says: how long a probe to be sent may take, and for how long the model has been silent."""

    probe: float | None
    silent: float | None

    @property
    def alive(self) -> bool:
        return self.silent is None


@dataclass
class World:
    """One model and the looks at it; ``now`` is in seconds."""

    rules: HealthRules = ALONE
    now: float = 100.0
    completed: int = 0
    asked: list[float] = field(default_factory=list)
    first: bool = True

    def __post_init__(self) -> None:
        self.health = HealthTracker(self.rules, self.now)

    def look(self, *, busy: bool = False, run: float = 0.0, after: float = LOOK) -> Report:
        self.now += 0 if self.first else after
        self.first = False
        probe = self.health.look(self.now, HealthObservation(well=self.completed, busy=busy, run=run))
        self.asked += [self.now] if probe is not None else []
        return Report(probe, self.health.silent_for(self.now))

    def ended(self, outcome: ProbeOutcome) -> None:
        self.health.ended(self.now, outcome)

    def trusted(self) -> "World":
        """After its first probe was answered well."""
        while self.look().probe is None:
            pass
        self.completed += 1
        self.ended(ProbeOutcome.OK)
        self.look()
        assert self.health.trust is ProbeTrust.TRUSTED
        return self


def test_a_model_that_has_just_been_loaded_is_left_alone_for_a_while() -> None:
    world = World()
    assert world.look().probe is None
    while world.look().probe is None:
        pass
    assert RULES.probe_interval <= world.now - 100 < RULES.probe_interval + LOOK


def test_one_probe_at_a_time() -> None:
    world = World()
    for _ in range(20):
        world.look()
    assert len(world.asked) == 1


def test_a_model_whose_runs_end_well_is_not_asked() -> None:
    world = World()
    for _ in range(50):
        world.completed += 1
        report = world.look(busy=True)
        assert report.alive
        assert report.probe is None


def test_a_model_that_hangs_is_silent_after_the_limit() -> None:
    world = World().trusted()
    began = world.now
    while world.look(busy=True).alive:
        assert world.now - began < 3 * RULES.limit
    assert RULES.limit < world.now - began <= RULES.limit + 2 * LOOK


def test_the_first_probe_may_hang_too() -> None:
    world = World()
    while world.look().probe is None:
        pass
    began = world.now
    while world.look(busy=True).alive:
        assert world.now - began < 3 * RULES.limit
    assert world.health.trust is ProbeTrust.PROVING


def test_a_model_with_nothing_to_do_owes_nothing_even_where_no_probe_finds_room() -> None:
    world = World().trusted()
    for _ in range(50):
        report = world.look()
        if report.probe is not None:
            world.ended(ProbeOutcome.UNANSWERED)
        assert report.alive
    assert len(world.asked) > 5


def test_a_full_queue_with_completions_is_alive_though_its_probes_are_refused() -> None:
    world = World().trusted()
    for _ in range(50):
        world.completed += 3
        report = world.look(busy=True)
        if report.probe is not None:
            world.ended(ProbeOutcome.UNANSWERED)
        assert report.alive


def test_a_model_that_never_could_run_on_made_up_input_is_not_judged() -> None:
    world = World()
    while world.look().probe is None:
        pass
    world.ended(ProbeOutcome.FAILED)
    for _ in range(50):
        report = world.look(busy=True)
        assert report.alive
        assert report.probe is None


def test_a_model_that_begins_to_fail_its_probes_is_silent_after_the_limit() -> None:
    world = World().trusted()
    began = world.now
    while (report := world.look()).alive:
        if report.probe is not None:
            world.ended(ProbeOutcome.FAILED)
        assert world.now - began < 3 * RULES.limit
    assert len(world.asked) > 2


def test_a_model_that_fails_a_probe_and_then_answers_one_is_alive() -> None:
    world = World().trusted()
    while world.look().probe is None:
        pass
    world.ended(ProbeOutcome.FAILED)
    while world.look().probe is None:
        pass
    world.completed += 1
    world.ended(ProbeOutcome.OK)
    for _ in range(int(RULES.probe_interval / LOOK)):
        assert world.look().alive


def test_a_model_whose_runs_are_long_may_be_silent_for_as_long_as_some_take() -> None:
    world = World().trusted()
    world.completed += 1
    world.look(busy=True, run=60.0)
    began = world.now
    while world.look(busy=True, run=60.0).alive:
        pass
    assert world.now - began > 10 * RULES.limit


def test_a_late_look_blames_no_run() -> None:
    world = World().trusted()
    world.look(busy=True)
    assert world.look(busy=True, after=100 * RULES.limit).alive
    while world.look(busy=True).alive:
        pass


# -- next to readiness -----------------------------------------------------------------


def test_a_probe_of_the_watchdog_may_take_longer_than_silence_and_one_of_readiness_is_let_go_sooner() -> None:
    world = World(WITH_READINESS)
    assert world.look().probe == WITH_READINESS.probe_timeout
    world.completed += 1
    world.ended(ProbeOutcome.OK)
    while (report := world.look(busy=True)).probe is None:
        pass
    assert report.probe > RULES.limit


def test_a_busy_model_that_leaves_a_probe_of_the_watchdog_unanswered_is_silent_and_not_suspect() -> None:
    world = World(WITH_READINESS)
    world.look()
    world.completed += 1
    world.ended(ProbeOutcome.OK)
    while (report := world.look(busy=True)).probe is None:
        pass
    end = world.now + report.probe
    while world.now < end:
        report = world.look(busy=True)
    world.ended(ProbeOutcome.UNANSWERED)
    assert not report.alive
    assert world.health.state is HealthState.HEALTHY


def test_what_the_watchdog_asks_tells_readiness_of_a_model_that_fails() -> None:
    world = World(WITH_READINESS).trusted()
    while world.health.state is not HealthState.FAILED:
        if world.look().probe is not None:
            world.ended(ProbeOutcome.FAILED)
    # Sooner than readiness alone would have asked.
    assert world.now < 100.0 + WITH_READINESS.probe_interval


def test_a_model_that_is_unready_is_sent_no_probe_of_the_watchdog_and_owes_nothing_while_it_is_idle() -> None:
    world = World(WITH_READINESS).trusted()
    while world.health.unready_reason is None:
        if world.look().probe is not None:
            world.ended(ProbeOutcome.FAILED)
    for _ in range(50):
        report = world.look()
        assert report.alive
        if report.probe is not None:
            assert report.probe == WITH_READINESS.probe_timeout
            world.ended(ProbeOutcome.FAILED)
    began = world.now
    while world.look(busy=True).alive:
        assert world.now - began < 3 * RULES.limit


def test_what_a_model_owes_begins_again_when_it_becomes_ready_or_unready() -> None:
    world = World(WITH_READINESS).trusted()
    world.look(busy=True)
    began = world.now
    stalled = HealthObservation(well=world.completed, busy=True, stalled=60.0)
    while world.now - began < RULES.limit:
        world.look(busy=True)
    world.now += LOOK
    world.health.look(world.now, stalled)
    assert world.health.unready_reason is not None
    assert world.health.silent_for(world.now) is None
    while world.health.silent_for(world.now) is None:
        world.now += LOOK
        world.health.look(world.now, stalled)
    assert world.now - began > 2 * RULES.limit
    assert world.look(busy=True).alive


@pytest.mark.parametrize("rules", [ALONE, WITH_READINESS], ids=["alone", "with readiness"])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["works", "rests", "hangs", "fails", "refuses"]),
            st.integers(1, 12),
            st.floats(0.5, 1.5),
        ),
        max_size=30,
    )
)
def test_no_walk_asks_too_often_or_calls_a_working_model_silent(
    rules: HealthRules, walk: list[tuple[str, int, float]]
) -> None:
    world, in_flight, good = World(rules), False, world_start()
    for does, looks, pace in walk:
        for _ in range(looks):
            if does == "works":
                world.completed += 1
            report = world.look(busy=does in ("works", "hangs"), after=LOOK * pace)
            # The first look takes no time.
            good = world.now if does == "works" else good
            quiet_for = world.now - good
            assert not (report.probe is not None and in_flight)
            in_flight |= report.probe is not None
            if in_flight and does != "hangs":
                outcome = {"fails": ProbeOutcome.FAILED, "refuses": ProbeOutcome.UNANSWERED}.get(does, ProbeOutcome.OK)
                world.completed += outcome is ProbeOutcome.OK
                world.ended(outcome)
                good = world.now if outcome is ProbeOutcome.OK else good
                in_flight = False
            if not report.alive:
                assert does != "works"
                assert quiet_for > RULES.limit
    gaps = [later - earlier for earlier, later in zip(world.asked, world.asked[1:], strict=False)]
    assert all(gap >= RULES.probe_interval for gap in gaps)


def world_start() -> float:
    return World().now
