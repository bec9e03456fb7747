"""Where runs are computed: decided by observations, without flapping."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.health.inline_choice import BETWEEN, FIRST, LONGEST, LOOKS, SLOW, InlineChoice

MOST = 100_000.0
QUICK, BORDERLINE, LONG = 0.4 * MOST, 2 * MOST, 40 * MOST
HANDING_OVER = MOST


@dataclass
class World:
    """A model whose inline runs take ``true`` nanoseconds, on a machine where other work makes them look slower."""

    true: float
    inline: bool
    now: float = 0.0
    runs: int = 0
    changed: list[float] = field(default_factory=list)
    measured: int = 0

    def __post_init__(self) -> None:
        self.choice = InlineChoice(MOST, self.now)

    def second(self, traffic: float = 1.0, quickest: float = 1.0, ended: int = 10) -> None:
        """One goes by: runs seem to take ``traffic`` times as long, and the quickest that is measured ``quickest``."""
        self.now += BETWEEN
        self.runs += ended
        took = traffic * (self.true if self.inline else self.true + HANDING_OVER)
        if not self.choice.look(self.now, self.runs, took, inline=self.inline):
            return
        self.measured += 1
        before = self.inline
        self.inline = quickest * self.true <= self.choice.most(inline=before)
        if self.inline != before:
            self.changed.append(self.now)
            self.runs = 0
        self.choice.measured(self.now, before=before, inline=self.inline)


SLOWDOWNS = st.sampled_from([1.0, 1.2, 2.0, 4.0, 10.0, 1000.0])
SPELLS = st.lists(st.tuples(st.integers(1, 900), SLOWDOWNS, SLOWDOWNS, st.sampled_from([0, 1, 10])), max_size=8)


def most_hand_overs(seconds: float) -> int:
    """At most so many within ``seconds``: the first at once, each one after that four times as late."""
    count, until, wait = 1, LONGEST, LONGEST
    while until < seconds:
        count, wait = count + 1, 4 * wait
        until += wait
    return count


@given(SPELLS, st.sampled_from([QUICK, BORDERLINE, LONG]), st.booleans())
def test_on_a_busy_machine_changes_are_few_and_the_right_choice_holds_when_it_is_calm(
    spells: list[tuple[int, float, float, int]], true: float, inline: bool
) -> None:
    world = World(true, inline)
    for seconds, traffic, quickest, ended in spells:
        for _ in range(seconds):
            world.second(traffic, quickest, ended)
    noisy = world.now
    assert len(world.changed) <= 2 * most_hand_overs(noisy) + 1
    # As long again as the next measurement may be away.
    for _ in range(int(4 * max(noisy, LONGEST)) + 2 * LOOKS):
        world.second()
    settled = world.inline
    if true != BORDERLINE:
        assert settled == (true == QUICK)
    changes = len(world.changed)
    for _ in range(2 * int(LONGEST)):
        world.second()
    assert (world.inline, len(world.changed)) == (settled, changes)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(1, 1e9), st.booleans()), max_size=200),
    st.booleans(),
)
def test_however_runs_behave_they_are_seldom_handed_over_again(
    looks: list[tuple[int, float, bool]], inline: bool
) -> None:
    choice, now, runs, hand_overs = InlineChoice(MOST, 0.0), 0.0, 0, list[float]()
    for repeats, took, quick in looks * 20:
        for _ in range(repeats * LOOKS):
            now, runs = now + BETWEEN, runs + 1
            if choice.look(now, runs, took, inline=inline):
                hand_overs += [now] if inline and not quick else []
                choice.measured(now, before=inline, inline=quick)
                inline = quick
    assert all(place < most_hand_overs(at) for place, at in enumerate(hand_overs))


def test_a_quick_model_that_started_on_a_busy_machine_is_inline_soon_after() -> None:
    world = World(QUICK, inline=False)
    for _ in range(300):
        world.second(traffic=8.0, quickest=8.0)
    assert not world.inline
    busy = world.now
    while not world.inline:
        world.second()
    assert world.now - busy <= max(busy, FIRST)
    assert len(world.changed) == 1


def test_a_model_that_is_slow_for_what_clients_send_is_handed_over_within_looks() -> None:
    world = World(QUICK, inline=False)
    while not world.inline:
        world.second()
    world.true = LONG
    for _ in range(LOOKS):
        assert world.inline
        world.second()
    assert not world.inline


def test_a_machine_that_stays_busy_moves_nothing_and_measures_ever_more_rarely() -> None:
    world = World(QUICK, inline=True)
    for _ in range(3600):
        world.second(traffic=50.0)
    assert (world.inline, world.changed) == (True, [])
    # After 30 s, 60 s more, and so on up to ten minutes.
    assert world.measured == 9


def test_runs_that_were_put_aside_now_and_then_say_nothing() -> None:
    world = World(QUICK, inline=True)
    for second in range(1000):
        world.second(traffic=50.0 if second % 3 == 0 else 1.0)
    assert (world.inline, world.measured) == (True, 0)


def test_nothing_is_measured_where_nothing_runs() -> None:
    for inline in (True, False):
        world = World(LONG, inline)
        for _ in range(1000):
            world.second(ended=0)
        assert (world.changed, world.measured) == ([], 0)


@pytest.mark.parametrize(("took", "measures"), [(19 * MOST, True), (21 * MOST, False)])
def test_only_what_may_be_quick_enough_is_measured(took: float, measures: bool) -> None:
    world = World(took - HANDING_OVER, inline=False)
    for _ in range(100):
        world.second()
    assert (world.measured > 0) is measures


def test_what_is_between_quick_and_slow_stays_as_it_is() -> None:
    assert 1 < BORDERLINE / MOST < SLOW
    for inline in (True, False):
        world = World(BORDERLINE, inline)
        for _ in range(3600):
            world.second()
        assert (world.inline, world.changed) == (inline, [])
