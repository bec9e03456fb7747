"""Who is alive: the rule by example, and by random walks of a model that works, rests, hangs or fails."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.supervision.vitality import TRUST, Ending, Rules, Sight, Trust, Verdict, Vitality

RULES = Rules.within(12.0)
LOOK = RULES.look


@dataclass
class World:
    """One model and the looks at it; ``now`` is in seconds."""

    vitality: Vitality[str] = field(default_factory=lambda: Vitality(RULES))
    now: float = 100.0
    completed: int = 0
    asked: list[float] = field(default_factory=list)
    first: bool = True

    def look(self, *, busy: bool = False, run: float = 0.0, after: float = LOOK) -> Verdict[str]:
        self.now += 0 if self.first else after
        self.first = False
        verdict = self.vitality.look(self.now, {"m": Sight(self.completed, busy, run)})
        self.asked += [self.now] * len(verdict.ask)
        return verdict

    def trusted(self) -> "World":
        """After its first canary was answered well."""
        while not self.look().ask:
            pass
        self.completed += 1
        self.vitality.ended("m", Ending.WELL)
        self.look()
        assert self.vitality.trust("m") is Trust.TRUSTED
        return self


def test_a_model_that_has_just_been_loaded_is_left_alone_for_a_while() -> None:
    world = World()
    assert world.look().ask == ()
    while not world.look().ask:
        pass
    assert RULES.quiet <= world.now - 100 < RULES.quiet + LOOK


def test_one_canary_at_a_time() -> None:
    world = World()
    for _ in range(20):
        world.look()
    assert len(world.asked) == 1


def test_a_model_whose_runs_end_well_is_not_asked() -> None:
    world = World()
    for _ in range(50):
        world.completed += 1
        verdict = world.look(busy=True)
        assert verdict.alive
        assert verdict.ask == ()


def test_a_model_that_hangs_is_silent_after_the_limit() -> None:
    world = World().trusted()
    began = world.now
    while world.look(busy=True).alive:
        assert world.now - began < 3 * RULES.limit
    assert RULES.limit < world.now - began <= RULES.limit + 2 * LOOK


def test_the_first_canary_may_hang_too() -> None:
    world = World()
    while not world.look().ask:
        pass
    began = world.now
    while world.look(busy=True).alive:
        assert world.now - began < 3 * RULES.limit
    assert world.vitality.trust("m") is Trust.PROVING


def test_a_model_with_nothing_to_do_owes_nothing_even_where_no_canary_finds_room() -> None:
    world = World().trusted()
    for _ in range(50):
        verdict = world.look()
        for key in verdict.ask:
            world.vitality.ended(key, Ending.UNANSWERED)
        assert verdict.alive
    assert len(world.asked) > 5


def test_a_full_queue_with_completions_is_alive_though_its_canaries_are_refused() -> None:
    world = World().trusted()
    for _ in range(50):
        world.completed += 3
        verdict = world.look(busy=True)
        for key in verdict.ask:
            world.vitality.ended(key, Ending.UNANSWERED)
        assert verdict.alive


def test_a_model_that_never_could_run_on_made_up_input_is_not_judged() -> None:
    world = World()
    while not world.look().ask:
        pass
    world.vitality.ended("m", Ending.FAILED)
    for _ in range(50):
        verdict = world.look(busy=True)
        assert verdict.alive
        assert verdict.ask == ()


def test_a_model_that_begins_to_fail_its_canaries_is_silent_after_the_limit() -> None:
    world = World().trusted()
    began = world.now
    while (verdict := world.look()).alive:
        for key in verdict.ask:
            world.vitality.ended(key, Ending.FAILED)
        assert world.now - began < 3 * RULES.limit
    assert len(world.asked) > 2


def test_a_model_that_fails_a_canary_and_then_answers_one_is_alive() -> None:
    world = World().trusted()
    while not world.look().ask:
        pass
    world.vitality.ended("m", Ending.FAILED)
    while not world.look().ask:
        pass
    world.completed += 1
    world.vitality.ended("m", Ending.WELL)
    for _ in range(int(RULES.quiet / LOOK)):
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
    world.vitality.look(world.now + LOOK, {})
    world.vitality.ended("m", Ending.FAILED)
    with pytest.raises(KeyError):
        world.vitality.trust("m")


def test_the_table_names_all_that_can_happen_to_a_model_that_is_asked() -> None:
    assert {key[0] for key in TRUST} == {Trust.PROVING, Trust.TRUSTED}
    assert len(TRUST) == 2 * len(Ending)


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
            verdict = world.look(busy=does in ("works", "hangs"), after=LOOK * pace)
            # The first look takes no time.
            good = world.now if does == "works" else good
            quiet_for = world.now - good
            assert not (verdict.ask and in_flight)
            in_flight |= bool(verdict.ask)
            if in_flight and does != "hangs":
                ending = {"fails": Ending.FAILED, "refuses": Ending.UNANSWERED}.get(does, Ending.WELL)
                world.completed += ending is Ending.WELL
                world.vitality.ended("m", ending)
                good = world.now if ending is Ending.WELL else good
                in_flight = False
            if not verdict.alive:
                assert does != "works"
                assert quiet_for > RULES.limit
    gaps = [later - earlier for earlier, later in zip(world.asked, world.asked[1:], strict=False)]
    assert all(gap >= RULES.quiet for gap in gaps)


def world_start() -> float:
    return World().now
