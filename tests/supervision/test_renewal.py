"""A process makes way only for a device that a fresh one can use and this one can't, and not too often."""

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.supervision.renewal import COURSES, Course, Plight, Renewal, RenewalRules, Turn, lost_for_good

RULES = RenewalRules(always=False, settled=600.0, again=300.0)
WELL = Plight(frozenset({"CPU"}))


def lost(*devices: str, exhausted: bool = True, ready: bool = False) -> Plight:
    """A version on these devices that has lost the first."""
    return Plight(frozenset(devices), frozenset(devices[:1]), exhausted, ready)


def tried(renewal: Renewal, now: float, *versions: Plight) -> str | None:
    return renewal.look(now, versions)


# -- the table -------------------------------------------------------------------------


def test_every_turn_has_its_effect_on_every_course() -> None:
    assert set(COURSES) == set(product(Course, Turn))


def test_nothing_ends_the_process_but_a_child_that_was_asked_and_could_use_the_device() -> None:
    assert [key for key, to in COURSES.items() if to is Course.OVER and key[0] is not Course.OVER] == [
        (Course.ASKING, Turn.USABLE)
    ]


# -- which devices are lost for good ---------------------------------------------------


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ([], []),
        ([WELL], []),
        ([lost("GPU")], ["GPU"]),
        ([lost("GPU"), WELL], ["GPU"]),
        ([lost("GPU", exhausted=False)], []),
        ([lost("GPU"), lost("GPU", exhausted=False)], []),
        # Another model runs there: the process is not what is wrong.
        ([lost("GPU"), Plight(frozenset({"GPU"}))], []),
        ([lost("GPU", "CPU", ready=True)], ["GPU"]),
        ([lost("NPU"), lost("GPU")], ["GPU", "NPU"]),
    ],
)
def test_a_device_is_lost_for_good_once_all_on_it_were_loaded_anew_in_vain(
    versions: Sequence[Plight], found: list[str]
) -> None:
    assert lost_for_good(versions) == found


# -- the course ------------------------------------------------------------------------


def test_the_process_is_over_once_a_child_could_use_what_it_has_lost() -> None:
    renewal = Renewal(RULES, began=0.0)
    assert tried(renewal, 700, WELL) is None
    assert tried(renewal, 701, lost("GPU")) == "GPU"
    assert tried(renewal, 702, lost("GPU")) is None
    renewal.answered(703, usable=True)
    assert renewal.course is Course.OVER
    assert tried(renewal, 704, lost("GPU")) is None


def test_where_a_child_can_not_use_it_either_it_is_tried_again_after_a_while() -> None:
    renewal = Renewal(RULES, began=0.0)
    assert tried(renewal, 700, lost("GPU")) == "GPU"
    renewal.answered(710, usable=False)
    assert tried(renewal, 1009, lost("GPU")) is None
    assert tried(renewal, 1010, lost("GPU")) == "GPU"
    renewal.answered(1011, usable=True)
    assert renewal.course is Course.OVER


def test_a_young_process_does_not_make_way() -> None:
    renewal = Renewal(RULES, began=1000.0)
    assert tried(renewal, 1599, lost("GPU")) is None
    assert tried(renewal, 1600, lost("GPU")) == "GPU"


def test_a_device_that_came_back_meanwhile_is_used() -> None:
    renewal = Renewal(RULES, began=0.0)
    assert tried(renewal, 700, lost("GPU")) == "GPU"
    assert tried(renewal, 701, WELL) is None
    renewal.answered(702, usable=True)
    assert renewal.course is Course.ON


@pytest.mark.parametrize(("always", "device"), [(False, None), (True, "GPU")])
def test_models_that_answer_are_interrupted_only_where_that_is_asked_for(always: bool, device: str | None) -> None:
    renewal = Renewal(RenewalRules(always=always), began=0.0)
    assert tried(renewal, 700, lost("GPU"), WELL) == device


def test_of_several_devices_each_is_tried_in_turn() -> None:
    renewal, now, seen = Renewal(RULES, began=0.0), 700.0, set()
    for _ in range(2):
        seen.add(tried(renewal, now, lost("GPU"), lost("NPU")))
        renewal.answered(now, usable=False)
        now += 300
    assert seen == {"GPU", "NPU"}


VERSIONS = st.lists(
    st.sampled_from([WELL, lost("GPU"), lost("GPU", exhausted=False), lost("GPU", "CPU", ready=True)]), max_size=3
)


@given(st.booleans(), st.lists(st.tuples(st.floats(0.1, 400.0), VERSIONS, st.booleans() | st.none()), max_size=60))
def test_whatever_happens_children_are_rare_and_only_a_usable_device_ends_the_process(
    always: bool, steps: Sequence[tuple[float, Sequence[Plight], bool | None]]
) -> None:
    renewal, now, asked, answers = Renewal(RenewalRules(always=always), 0.0), 0.0, [], []
    for seconds, versions, answer in steps:
        now += seconds
        if renewal.look(now, versions) is not None:
            asked.append(now)
            assert lost_for_good(versions)
            assert always or not any(v.ready for v in versions)
        if answer is not None and len(asked) > len(answers):
            answers.append(answer)
            renewal.answered(now, usable=answer)
    assert all(at >= 600 for at in asked)
    assert (renewal.course is Course.OVER) <= any(answers)
