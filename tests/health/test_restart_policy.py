"""The process restarts only for a device that a fresh process can use and this one cannot, and not too often."""

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.health.restart_policy import (
    TRANSITIONS,
    RestartEvent,
    RestartPolicy,
    RestartRules,
    RestartState,
    VersionHealth,
    lost_for_good,
)

RULES = RestartRules(always=False, min_uptime=600.0, retry_interval=300.0)
WELL = VersionHealth(frozenset({"CPU"}))


def lost(*devices: str, exhausted: bool = True, ready: bool = False) -> VersionHealth:
    """A version on these devices that has lost the first."""
    return VersionHealth(frozenset(devices), frozenset(devices[:1]), exhausted, ready)


def tried(policy: RestartPolicy, now: float, *versions: VersionHealth) -> str | None:
    return policy.look(now, versions)


# -- the table -------------------------------------------------------------------------


def test_every_event_has_its_effect_on_every_state() -> None:
    assert set(TRANSITIONS) == set(product(RestartState, RestartEvent))


def test_nothing_ends_the_process_but_a_child_that_was_asked_and_could_use_the_device() -> None:
    assert [
        key
        for key, to in TRANSITIONS.items()
        if to is RestartState.RESTARTING and key[0] is not RestartState.RESTARTING
    ] == [(RestartState.TESTING, RestartEvent.USABLE)]


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
        ([lost("GPU"), VersionHealth(frozenset({"GPU"}))], []),
        ([lost("GPU", "CPU", ready=True)], ["GPU"]),
        ([lost("NPU"), lost("GPU")], ["GPU", "NPU"]),
    ],
)
def test_a_device_is_lost_for_good_once_all_on_it_were_reloaded_in_vain(
    versions: Sequence[VersionHealth], found: list[str]
) -> None:
    assert lost_for_good(versions) == found


# -- the state -------------------------------------------------------------------------


def test_the_process_is_over_once_a_child_could_use_what_it_has_lost() -> None:
    policy = RestartPolicy(RULES, began=0.0)
    assert tried(policy, 700, WELL) is None
    assert tried(policy, 701, lost("GPU")) == "GPU"
    assert tried(policy, 702, lost("GPU")) is None
    policy.answered(703, usable=True)
    assert policy.state is RestartState.RESTARTING
    assert tried(policy, 704, lost("GPU")) is None


def test_where_a_child_can_not_use_it_either_it_is_tried_again_after_a_while() -> None:
    policy = RestartPolicy(RULES, began=0.0)
    assert tried(policy, 700, lost("GPU")) == "GPU"
    policy.answered(710, usable=False)
    assert tried(policy, 1009, lost("GPU")) is None
    assert tried(policy, 1010, lost("GPU")) == "GPU"
    policy.answered(1011, usable=True)
    assert policy.state is RestartState.RESTARTING


def test_a_young_process_does_not_make_way() -> None:
    policy = RestartPolicy(RULES, began=1000.0)
    assert tried(policy, 1599, lost("GPU")) is None
    assert tried(policy, 1600, lost("GPU")) == "GPU"


def test_a_device_that_came_back_meanwhile_is_used() -> None:
    policy = RestartPolicy(RULES, began=0.0)
    assert tried(policy, 700, lost("GPU")) == "GPU"
    assert tried(policy, 701, WELL) is None
    policy.answered(702, usable=True)
    assert policy.state is RestartState.RUNNING


@pytest.mark.parametrize(("always", "device"), [(False, None), (True, "GPU")])
def test_models_that_answer_are_interrupted_only_where_that_is_asked_for(always: bool, device: str | None) -> None:
    policy = RestartPolicy(RestartRules(always=always), began=0.0)
    assert tried(policy, 700, lost("GPU"), WELL) == device


def test_of_several_devices_each_is_tried_in_turn() -> None:
    policy, now, seen = RestartPolicy(RULES, began=0.0), 700.0, set()
    for _ in range(2):
        seen.add(tried(policy, now, lost("GPU"), lost("NPU")))
        policy.answered(now, usable=False)
        now += 300
    assert seen == {"GPU", "NPU"}


VERSIONS = st.lists(
    st.sampled_from([WELL, lost("GPU"), lost("GPU", exhausted=False), lost("GPU", "CPU", ready=True)]), max_size=3
)


@given(st.booleans(), st.lists(st.tuples(st.floats(0.1, 400.0), VERSIONS, st.booleans() | st.none()), max_size=60))
def test_whatever_happens_children_are_rare_and_only_a_usable_device_ends_the_process(
    always: bool, steps: Sequence[tuple[float, Sequence[VersionHealth], bool | None]]
) -> None:
    policy, now, asked, answers = RestartPolicy(RestartRules(always=always), 0.0), 0.0, [], []
    for seconds, versions, answer in steps:
        now += seconds
        if policy.look(now, versions) is not None:
            asked.append(now)
            assert lost_for_good(versions)
            assert always or not any(v.ready for v in versions)
        if answer is not None and len(asked) > len(answers):
            answers.append(answer)
            policy.answered(now, usable=answer)
    assert all(at >= 600 for at in asked)
    assert (policy.state is RestartState.RESTARTING) <= any(answers)
