"""Who is alive: the rule by example, and by random walks of a model that works, rests, hangs or fails."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.health.liveness import (
    PROBE_TRUST,
    Liveness,
    LivenessReport,
    LivenessRules,
    ModelActivity,
    ProbeOutcome,
    ProbeTrust,
)

RULES = LivenessRules.within(12.0)
LOOK = RULES.look


@dataclass
class World:
    """One model and the looks at it; ``now`` is in seconds."""

    liveness: Liveness[str] = field(default_factory=lambda: Liveness(RULES))
    now: float = 100.0
    completed: int = 0
    asked: list[float] = field(default_factory=list)
    first: bool = True

    def look(self, *, busy: bool = False, run: float = 0.0, after: float = LOOK) -> LivenessReport[str]:
        self.now += 0 if self.first else after
        self.first = False
        report = self.liveness.look(self.now, {"m": ModelActivity(self.completed, busy, run)})
        self.asked += [self.now] * len(report.to_probe)
        return report

    def trusted(self) -> "World":
        """After its first probe was answered well."""
        while not self.look().to_probe:
            pass
        self.completed += 1
        self.liveness.ended("m", ProbeOutcome.OK)
        self.look()
        assert self.liveness.trust("m") is ProbeTrust.TRUSTED
        return self


def test_a_model_that_has_just_been_loaded_is_left_alone_for_a_while() -> None:
    world = World()
    assert world.look().to_probe == ()
    while not world.look().to_probe:
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
        assert report.to_probe == ()


def test_a_model_that_hangs_is_silent_after_the_limit() -> None:
    world = World().trusted()
    began = world.now
    while world.look(busy=True).alive:
        assert world.now - began < 3 * RULES.limit
    assert RULES.limit < world.now - began <= RULES.limit + 2 * LOOK


def test_the_first_probe_may_hang_too() -> None:
    world = World()
    while not world.look().to_probe:
        pass
    began = world.now
    while world.look(busy=True).alive:
        assert world.now - began < 3 * RULES.limit
    assert world.liveness.trust("m") is ProbeTrust.PROVING


def test_a_model_with_nothing_to_do_owes_nothing_even_where_no_probe_finds_room() -> None:
    world = World().trusted()
    for _ in range(50):
        report = world.look()
        for key in report.to_probe:
            world.liveness.ended(key, ProbeOutcome.UNANSWERED)
        assert report.alive
    assert len(world.asked) > 5


def test_a_full_queue_with_completions_is_alive_though_its_probes_are_refused() -> None:
    world = World().trusted()
    for _ in range(50):
        world.completed += 3
        report = world.look(busy=True)
        for key in report.to_probe:
            world.liveness.ended(key, ProbeOutcome.UNANSWERED)
        assert report.alive


def test_a_model_that_never_could_run_on_made_up_input_is_not_judged() -> None:
    world = World()
    while not world.look().to_probe:
        pass
    world.liveness.ended("m", ProbeOutcome.FAILED)
    for _ in range(50):
        report = world.look(busy=True)
        assert report.alive
        assert report.to_probe == ()


def test_a_model_that_begins_to_fail_its_probes_is_silent_after_the_limit() -> None:
    world = World().trusted()
    began = world.now
    while (report := world.look()).alive:
        for key in report.to_probe:
            world.liveness.ended(key, ProbeOutcome.FAILED)
        assert world.now - began < 3 * RULES.limit
    assert len(world.asked) > 2


def test_a_model_that_fails_a_probe_and_then_answers_one_is_alive() -> None:
    world = World().trusted()
    while not world.look().to_probe:
        pass
    world.liveness.ended("m", ProbeOutcome.FAILED)
    while not world.look().to_probe:
        pass
    world.completed += 1
    world.liveness.ended("m", ProbeOutcome.OK)
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


def test_whoever_looks_late_blames_nobody_for_it() -> None:
    world = World().trusted()
    world.look(busy=True)
    assert world.look(busy=True, after=100 * RULES.limit).alive
    while world.look(busy=True).alive:
        pass


def test_a_model_that_is_gone_is_forgotten() -> None:
    world = World().trusted()
    world.liveness.look(world.now + LOOK, {})
    world.liveness.ended("m", ProbeOutcome.FAILED)
    with pytest.raises(KeyError):
        world.liveness.trust("m")


def test_the_table_names_all_that_can_happen_to_a_model_that_is_asked() -> None:
    assert {key[0] for key in PROBE_TRUST} == {ProbeTrust.PROVING, ProbeTrust.TRUSTED}
    assert len(PROBE_TRUST) == 2 * len(ProbeOutcome)


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
def test_no_walk_asks_too_often_or_calls_a_working_model_silent(walk: list[tuple[str, int, float]]) -> None:
    world, in_flight, good = World(), False, world_start()
    for does, looks, pace in walk:
        for _ in range(looks):
            if does == "works":
                world.completed += 1
            report = world.look(busy=does in ("works", "hangs"), after=LOOK * pace)
            # The first look takes no time.
            good = world.now if does == "works" else good
            quiet_for = world.now - good
            assert not (report.to_probe and in_flight)
            in_flight |= bool(report.to_probe)
            if in_flight and does != "hangs":
                outcome = {"fails": ProbeOutcome.FAILED, "refuses": ProbeOutcome.UNANSWERED}.get(does, ProbeOutcome.OK)
                world.completed += outcome is ProbeOutcome.OK
                world.liveness.ended("m", outcome)
                good = world.now if outcome is ProbeOutcome.OK else good
                in_flight = False
            if not report.alive:
                assert does != "works"
                assert quiet_for > RULES.limit
    gaps = [later - earlier for earlier, later in zip(world.asked, world.asked[1:], strict=False)]
    assert all(gap >= RULES.probe_interval for gap in gaps)


def world_start() -> float:
    return World().now
