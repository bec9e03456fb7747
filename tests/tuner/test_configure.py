"""From settings to candidates, and back."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.axes import AXES
from inferd.config.model import (
    BatchingSettings,
    ExecutionSettings,
    ModelConfig,
    ObjectiveSettings,
    SequenceSettings,
    parse,
)
from inferd.engine.topology import Tunables
from inferd.tensors import Dim, DType, Signature, TensorSpec
from inferd.tuner.configure import Seeds, configured, goal_of, out_of_reach, seeds_of, space_of
from inferd.tuning.candidates import Candidate, Space
from inferd.tuning.goal import Goal

PINNING = {"pinning": (True, False)}
CHOICES = {**PINNING, "hyper_threading": (True, False), "core_type": ("any", "performance", "efficient")}
CPU = Tunables((1, 4), 4, CHOICES)
PLAIN_CPU = Tunables((1, 2), 2, PINNING)
GPU = Tunables((1, 3))
ALWAYS_ASYNC = ExecutionSettings(path="async")
FULL = Candidate(2, 4, 8, 16, True, False, "performance", "sync")


def signature(max_batch: int = 0, *, stateful: bool = False) -> Signature:
    dims = (Dim(1, max_batch) if max_batch else Dim(1, 1), Dim(4, 4))
    return Signature(
        (TensorSpec("x", DType.FP32, dims),), (TensorSpec("y", DType.FP32, dims),), max_batch, stateful=stateful
    )


def space(execution: ExecutionSettings = ALWAYS_ASYNC, tunables: Tunables = CPU, **more: Any) -> Space:
    config = ModelConfig(execution=execution, **more)
    return space_of(config, signature(config.batching.max_size), tunables)


# -- what may be tried ---------------------------------------------------------------------


def test_everything_that_the_device_can_do_may_be_tried() -> None:
    assert space(ExecutionSettings(path="auto"), batching=BatchingSettings(max_size=8)) == Space(
        streams=(1, 2, 3, 4),
        threads=(1, 2, 3, 4),
        requests=(1, 2, 3, 4, 6, 8, 12, 16),
        batch=(1, 2, 4, 8),
        choices={
            "pinning": (True, False),
            "hyper_threading": (True, False),
            "core_type": ("any", "performance", "efficient"),
        },
        path=("async", "sync"),
        multiples=(1, 2, 4),
    )


def test_what_the_device_gives_no_choice_of_is_left_to_it() -> None:
    assert space(tunables=PLAIN_CPU) == Space(
        (1, 2),
        (1, 2),
        (1, 2, 4, 8),
        (1,),
        {"pinning": (True, False), "hyper_threading": (None,), "core_type": (None,)},
        ("async",),
        (1, 2, 4),
    )


def test_on_a_device_that_takes_no_number_of_threads_streams_are_still_tried() -> None:
    tried = space(tunables=GPU)
    assert (tried.streams, tried.threads) == ((1, 2, 3), (3,))
    assert tried.choices == {"pinning": (None,), "hyper_threading": (None,), "core_type": (None,)}
    assert {c.streams for c in tried.all()} == {1, 2, 3}
    # Its settings have a number all the same, which is passed to CPUs only.
    assert space(ExecutionSettings(threads=2), GPU).threads == (3,)


def test_where_there_is_nothing_one_candidate_is_left() -> None:
    assert list(space(ExecutionSettings(infer_requests=1), Tunables()).all()) == [Candidate(1, 1, 1)]


def test_a_path_that_one_thread_can_not_have_is_not_tried_though_the_settings_say_so() -> None:
    one = Tunables((1, 1), 1, PINNING)
    assert {c.path for c in space(ExecutionSettings(path="sync"), one).all()} == {"async"}
    assert {c.path for c in space(ExecutionSettings(path="sync", threads=1)).all()} == {"async"}
    # With more threads there is a way to heed them.
    heeded = {(c.streams, c.threads, c.path) for c in space(ExecutionSettings(path="sync", streams=1)).all()}
    assert heeded == {(1, threads, "sync") for threads in space().threads if threads > 1}


def test_many_streams_and_threads_are_tried_in_steps() -> None:
    tried = space(tunables=Tunables((1, 64), 96))
    assert tried.streams == (1, 2, 3, 4, 6, 9, 13, 19, 28, 42, 63, 64)
    assert tried.threads == (1, 2, 3, 4, 6, 9, 13, 19, 28, 42, 63, 94, 96)


@pytest.mark.parametrize(
    ("execution", "axis", "values"),
    [
        (ExecutionSettings(streams=3), "streams", (3,)),
        (ExecutionSettings(threads=3), "threads", (3,)),
        (ExecutionSettings(infer_requests=5), "requests", (5,)),
        (ExecutionSettings(pinning="on"), "pinning", (True,)),
        (ExecutionSettings(pinning="off"), "pinning", (False,)),
        (ExecutionSettings(hyper_threading="on"), "hyper_threading", (True,)),
        (ExecutionSettings(hyper_threading="off"), "hyper_threading", (False,)),
        (ExecutionSettings(core_type="any"), "core_type", ("any",)),
        (ExecutionSettings(core_type="efficient"), "core_type", ("efficient",)),
        (ExecutionSettings(path="sync"), "path", ("sync",)),
        (ExecutionSettings(path="async"), "path", ("async",)),
    ],
)
def test_what_the_settings_say_is_not_tuned(execution: ExecutionSettings, axis: str, values: tuple[Any, ...]) -> None:
    tried = space(execution)
    assert {getattr(c, axis) for c in tried.all()} == set(tried.values(axis)) == set(values)
    # All else still is.
    free = [a for a in AXES if len(space(ExecutionSettings(path="auto")).values(a)) > 1 and a not in (axis, "path")]
    assert all(len(tried.values(a)) > 1 for a in free)


def test_all_of_them_together_leave_one_candidate() -> None:
    execution = ExecutionSettings(
        streams=2,
        threads=4,
        infer_requests=3,
        pinning="on",
        hyper_threading="off",
        core_type="any",
        path="sync",
    )
    assert list(space(execution).all()) == [Candidate(2, 4, 3, 1, True, False, "any", "sync")]


@pytest.mark.parametrize(
    ("execution", "expected"),
    [
        # As the device does it: asked for more, it takes what it has.
        (ExecutionSettings(streams=16), Candidate(2, 2, 2, pinning=True)),
        (ExecutionSettings(streams=3, threads=8), Candidate(2, 2, 2, pinning=True)),
        (ExecutionSettings(threads=8), Candidate(1, 2, 1, pinning=True)),
        # It has no such choice, and whatever is set has no effect.
        (ExecutionSettings(hyper_threading="on"), Candidate(1, 1, 1, pinning=True)),
        (ExecutionSettings(core_type="efficient"), Candidate(1, 1, 1, pinning=True)),
        # A stream without a thread or an infer request would be idle.
        (ExecutionSettings(streams=2, threads=1), Candidate(1, 1, 1, pinning=True)),
        (ExecutionSettings(streams=2, infer_requests=1), Candidate(1, 1, 1, pinning=True)),
    ],
)
def test_settings_beyond_what_the_device_has_are_capped(execution: ExecutionSettings, expected: Candidate) -> None:
    asked = execution.model_copy(update={"path": "async"})
    assert next(space(asked, PLAIN_CPU).all()) == expected


@pytest.mark.parametrize(
    ("batching", "batch"),
    [
        (BatchingSettings(), (1,)),
        (BatchingSettings(max_size=1), (1,)),
        (BatchingSettings(max_size=8, enabled=False), (1,)),
        (BatchingSettings(max_size=8), (1, 2, 4, 8)),
        (BatchingSettings(max_size=6), (1, 2, 4, 6)),
        (BatchingSettings(max_size=8, max_batch_rows=3), (1, 2, 3)),
        (BatchingSettings(max_size=8, max_batch_rows=1), (1,)),
    ],
)
def test_batches_are_tried_where_dynamic_batching_is_on(batching: BatchingSettings, batch: tuple[int, ...]) -> None:
    assert space(batching=batching).batch == batch


def test_a_model_that_keeps_its_state_is_not_batched_nor_given_more_requests_than_sequences() -> None:
    config = ModelConfig(batching=BatchingSettings(max_size=8), sequences=SequenceSettings(max_active=5))
    tried = space_of(config, signature(8, stateful=True), Tunables((1, 8), 8, PINNING))
    assert tried.batch == (1,)
    assert tried.streams == (1, 2, 3, 4, 5)
    assert max(tried.requests) == 5
    many = ModelConfig(sequences=SequenceSettings(max_active=5), execution=ExecutionSettings(infer_requests=9))
    assert space_of(many, signature(stateful=True), CPU).requests == (5,)


# -- settings under a candidate --------------------------------------------------------------


def test_a_candidate_becomes_settings() -> None:
    config = configured(ModelConfig(batching=BatchingSettings(max_size=32)), FULL)
    assert config.execution == ExecutionSettings(
        streams=2,
        threads=4,
        infer_requests=8,
        pinning="on",
        hyper_threading="off",
        core_type="performance",
        path="sync",
    )
    assert (config.batching.enabled, config.batching.max_batch_rows) == (True, 16)


SETTINGS = """
devices = ["CPU"]
[versions]
count = 2
[objective]
goal = "latency"
latency_slo = 0.5
[execution]
mode = "performance"
precision = "bf16"
[batching]
max_size = 32
max_delay = 0.01
preferred_sizes = [4, 8]
[queue]
max_length = 7
[sequences.state.s]
output = "t"
[share]
weight = 2.0
[warmup]
runs = 3
[shapes]
x = [1, "2..8"]
[preprocessing.x]
layout = "NHWC"
[properties]
LOG_LEVEL = "LOG_NONE"
"""


def test_nothing_else_changes() -> None:
    before = parse(SETTINGS, "m/model.toml")
    after = configured(before, FULL)
    touched = {
        "execution": {*ExecutionSettings.model_fields} - {"mode", "precision"},
        "batching": {"enabled", "max_batch_rows"},
    }
    assert before.model_dump(exclude=touched) == after.model_dump(exclude=touched)
    assert before.model_dump(include=touched) != after.model_dump(include=touched)
    assert before == parse(SETTINGS, "m/model.toml")


def test_what_is_left_to_the_device_stays_as_the_settings_have_it() -> None:
    own = ExecutionSettings(pinning="on", hyper_threading="off", core_type="efficient")
    after = configured(ModelConfig(execution=own), Candidate(1, 2, 3)).execution
    assert (after.pinning, after.hyper_threading, after.core_type) == ("on", "off", "efficient")
    after = configured(ModelConfig(), Candidate(1, 2, 3)).execution
    assert (after.pinning, after.hyper_threading, after.core_type) == ("auto", "auto", "auto")


def test_a_batch_of_one_joins_nothing_and_a_model_without_a_batch_is_left_as_it_is() -> None:
    one = Candidate(1, 1, 1)
    assert configured(ModelConfig(batching=BatchingSettings(max_size=8)), one).batching == BatchingSettings(
        max_size=8, enabled=False, max_batch_rows=1
    )
    assert configured(ModelConfig(), one).batching == BatchingSettings()


EXECUTIONS = st.builds(
    ExecutionSettings,
    streams=st.sampled_from([0, 0, 1, 3, 1024]),
    threads=st.sampled_from([0, 0, 1, 3, 4096]),
    infer_requests=st.sampled_from([0, 0, 1, 3, 4096]),
    pinning=st.sampled_from(["auto", "on", "off"]),
    hyper_threading=st.sampled_from(["auto", "on", "off"]),
    core_type=st.sampled_from(["auto", "any", "performance", "efficient"]),
    path=st.sampled_from(["auto", "async", "sync"]),
)
BATCHES = st.tuples(st.sampled_from([0, 1, 2, 7, 64]), st.booleans()).map(
    lambda b: BatchingSettings(max_size=b[0], enabled=b[1])
)
DEVICES = st.sampled_from(
    [CPU, PLAIN_CPU, GPU, Tunables(), Tunables((1, 1), 1, PINNING), Tunables((1, 1024), 2048, PINNING)]
)


@given(EXECUTIONS, BATCHES, DEVICES, st.booleans(), st.data())
def test_whatever_may_be_tried_are_settings_that_model_toml_could_have_and_those_that_it_fixes(
    execution: ExecutionSettings, batching: BatchingSettings, tunables: Tunables, stateful: bool, data: st.DataObject
) -> None:
    config = ModelConfig(execution=execution, batching=batching)
    tried = space_of(config, signature(batching.max_size, stateful=stateful), tunables)
    members = tried.spread(16)
    hints = Seeds(*data.draw(st.tuples(*[st.tuples(*[st.integers(1, 300)] * 3)] * 2)))
    stored = data.draw(st.none() | st.just(FULL))
    for candidate in (*members, *seeds_of(tried, hints, stored)):
        assert tried.contains(candidate)
        after = configured(config, candidate)
        assert ModelConfig.model_validate(after.model_dump()) == after
        # Those settings allow that candidate, and smaller batches.
        again = space_of(after, signature(batching.max_size, stateful=stateful), tunables)
        assert list(again.all())[-1] == candidate
        for name in ("pinning", "hyper_threading", "core_type", "path"):
            said = getattr(execution, name)
            if name == "path" and tried.threads == (1,):
                said = "async"
            assert said in ("auto", getattr(after.execution, name))
        for name in ("streams", "infer_requests", *(["threads"] if "pinning" in tunables.choices else [])):
            assert getattr(execution, name) == 0 or getattr(after.execution, name) <= getattr(execution, name)


# -- where to begin ---------------------------------------------------------------------------


def test_a_search_begins_with_what_the_hints_would_choose_and_the_last_winner() -> None:
    tried = space(ExecutionSettings(path="auto"))
    stored = Candidate(3, 3, 6, 1, False, False, "efficient", "sync")
    latency, throughput, last = seeds_of(tried, Seeds((1, 4, 1), (4, 4, 4)), stored)
    # By themselves devices pin, share cores and take any.
    assert latency == Candidate(1, 4, 1, 1, True, True, "any", "async")
    assert throughput == Candidate(4, 4, 4, 1, True, True, "any", "async")
    assert last == stored


def test_hints_that_say_the_same_keep_their_places() -> None:
    latency, throughput, stored = seeds_of(space(), Seeds((1, 2, 1), (1, 2, 1)), Candidate(2, 2, 2))
    assert latency == throughput != stored


def test_seeds_outside_of_what_may_be_tried_are_brought_inside() -> None:
    tried = space(ExecutionSettings(streams=2, pinning="off", path="sync"))
    seeds = seeds_of(tried, Seeds((1, 64, 1), (64, 64, 64)), replace(FULL, streams=9))
    assert all(map(tried.contains, seeds))
    assert {(s.streams, s.pinning, s.path) for s in seeds} == {(2, False, "sync")}


# -- what for ---------------------------------------------------------------------------------


def test_the_goal_is_the_objective_of_the_settings() -> None:
    assert goal_of(ModelConfig()) == Goal("throughput", None, 99.0)
    objective = ObjectiveSettings(goal="latency", latency_slo=0.25, percentile=95.0)
    assert goal_of(ModelConfig(objective=objective)) == Goal("latency", 0.25, 95.0)


# -- profiles that someone has edited --------------------------------------------------


@pytest.mark.parametrize(
    ("candidate", "problem"),
    [
        (Candidate(4, 4, 16, 8), ""),
        (Candidate(5, 5, 5), "streams must be 1..4, not 5"),
        (Candidate(1, 64, 1), "threads must be 1..4, not 64"),
        (Candidate(1, 1, 17), "requests must be 1..16, not 17"),
        (Candidate(1, 1, 1, 9), "batch must be 1..8, not 9"),
        (Candidate(1, 1, -1), "requests must be 1..16, not -1"),
    ],
)
def test_more_than_the_device_and_the_model_have_is_out_of_reach(candidate: Candidate, problem: str) -> None:
    assert out_of_reach(ModelConfig(batching=BatchingSettings(max_size=8)), CPU, candidate) == problem


def test_what_model_toml_sets_is_within_reach() -> None:
    config = ModelConfig(execution=ExecutionSettings(streams=9, threads=10, infer_requests=90))
    assert out_of_reach(config, CPU, Candidate(9, 10, 90)) == ""


@given(st.integers(1, 64), st.integers(1, 128), st.integers(0, 64))
def test_nothing_that_a_search_may_choose_is_out_of_reach(streams: int, threads: int, rows: int) -> None:
    config, tunables = ModelConfig(batching=BatchingSettings(max_size=rows)), Tunables((1, streams), threads)
    for candidate in space_of(config, signature(max(rows, 1)), tunables).all():
        assert out_of_reach(config, tunables, candidate) == ""
