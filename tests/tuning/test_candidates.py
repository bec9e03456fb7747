"""Which candidates may be tried, and which are neighbours."""

from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from inferd.axes import AXES
from inferd.tuning.candidates import Candidate, Space
from tests.effort import examples
from tests.tuning.surfaces import SPACES

ONE = Candidate(streams=2, threads=4, requests=4, batch=8, pinning=True, core_type="performance", path="sync")


def some(*values: Any, most: int = 3) -> st.SearchStrategy[tuple[Any, ...]]:
    """A few of ``values``, in their order."""
    return st.sets(st.sampled_from(values), min_size=1, max_size=most).map(
        lambda chosen: tuple(v for v in values if v in chosen)
    )


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    values: dict[str, Any] = {
        "streams": draw(some(1, 2, 3, 4, 8)),
        "threads": draw(some(1, 2, 3, 4, 8, 9)),
        "requests": draw(some(1, 2, 3, 4, 6, 8, 12, 16, 32, most=6)),
        "batch": draw(some(1, 2, 4, 8)),
        "choices": {
            "pinning": draw(some(None, True, False)),
            "hyper_threading": draw(some(None, True, False)),
            "core_type": draw(some(None, "any", "efficient")),
        },
        "path": draw(some("async", "sync")),
        "multiples": draw(st.just(()) | some(1, 2, 4)),
    }
    try:
        return Space(**values)
    except ValueError:
        assume(False)
        raise


anything = st.builds(
    Candidate,
    streams=st.integers(1, 100),
    threads=st.integers(1, 100),
    requests=st.integers(1, 100),
    batch=st.integers(1, 100),
    pinning=st.sampled_from([None, True, False]),
    hyper_threading=st.sampled_from([None, True, False]),
    core_type=st.sampled_from([None, "any", "efficient"]),
    path=st.sampled_from(["async", "sync"]),
)


def test_a_candidate_is_described_in_words() -> None:
    assert ONE.describe() == "2 streams, 4 threads, 4 requests, batch 8, pinned, cores performance, sync"
    assert Candidate(1, 1, 1).describe() == "1 stream, 1 thread, 1 request, batch 1, async"


def test_requests_batch_and_path_need_no_other_model() -> None:
    assert replace(ONE, requests=8, batch=1, path="async").compile_key == ONE.compile_key
    for change in ({"streams": 1}, {"threads": 2}, {"pinning": None}, {"hyper_threading": True}, {"core_type": "any"}):
        assert replace(ONE, **change).compile_key != ONE.compile_key  # type: ignore[arg-type]


@given(st.lists(anything, min_size=2))
def test_candidates_have_an_order_and_what_takes_least_comes_first(candidates: list[Candidate]) -> None:
    ordered = sorted(candidates)
    assert [c.effort for c in ordered] == sorted(c.effort for c in candidates)
    assert all(one <= other for one, other in pairwise(ordered))


@given(spaces())
def test_a_space_has_what_it_contains_and_each_of_it_once(space: Space) -> None:
    members = list(space.all())
    assert len(members) == len(set(members)) == space.size
    for member in members:
        assert space.contains(member)
        assert member.streams <= min(member.threads, member.requests)
        assert member.path in space.path
        assert not space.multiples or member.requests / member.streams in space.multiples


@given(anything)
def test_one_stream_of_one_thread_is_never_sync(candidate: Candidate) -> None:
    """Whatever is given, also where another candidate is changed: OpenVINO fact 38."""
    alone = replace(candidate, streams=1, threads=1)
    assert alone.path == replace(alone, path="sync").path == "async"
    assert replace(alone, threads=2, path="sync").path == "sync"


@given(spaces())
def test_a_space_lacks_nothing_but_what_could_not_run_as_it_says(space: Space) -> None:
    everything = product(*map(space.values, AXES))
    assert set(space.all()) == {
        Candidate(streams, threads, requests, *rest)
        for streams, threads, requests, *rest in everything
        if streams <= min(threads, requests)
        and (not space.multiples or requests / streams in space.multiples)
        and (streams, threads, rest[-1]) != (1, 1, "sync")
    }


@given(spaces(), anything)
def test_a_candidate_is_clipped_to_a_member_and_a_member_to_itself(space: Space, candidate: Candidate) -> None:
    clipped = space.clip(candidate)
    assert space.contains(clipped)
    assert space.clip(clipped) == clipped
    assert space.contains(candidate) == (clipped == candidate)


@given(spaces(), st.data())
def test_whatever_lies_around_a_member_is_a_member(space: Space, data: st.DataObject) -> None:
    member = data.draw(st.sampled_from(list(space.all())))
    for around in (space.neighbours(member), space.jumps(member)):
        assert member not in around
        assert len(set(around)) == len(around)
        assert all(map(space.contains, around))
    assert all(map(space.contains, (*space.scouts(member), *space.spread(20))))


@settings(max_examples=examples(40))
@given(spaces())
def test_every_member_can_be_reached_in_steps(space: Space) -> None:
    start = next(space.all())
    reached, edge = {start}, [start]
    while edge:
        edge = [c for c in dict.fromkeys(n for e in edge for n in space.neighbours(e)) if c not in reached]
        reached |= set(edge)
    assert len(reached) == space.size


def test_more_streams_take_threads_and_requests_with_them() -> None:
    space = Space((1, 2, 4), (1, 2, 4), (1, 2, 4, 8))
    around = space.neighbours(Candidate(2, 2, 2))
    assert Candidate(4, 4, 4) in around
    assert Candidate(1, 2, 2) in around
    assert Candidate(1, 1, 1) in around


def test_more_streams_may_keep_the_requests_of_each() -> None:
    assert Candidate(4, 4, 8) in Space((1, 2, 4), (4,), (1, 2, 4, 8)).neighbours(Candidate(2, 4, 4))


def test_rows_in_flight_may_be_batched_in_other_ways() -> None:
    space = Space((1, 2, 4), (4,), (1, 2, 4, 8), (1, 2, 4))
    around = space.neighbours(Candidate(2, 4, 4, 2))
    assert Candidate(2, 4, 8, 1) in around
    assert Candidate(2, 4, 2, 4) in around
    assert Candidate(1, 4, 2, 4) in around


def test_jumps_are_of_two_steps_and_at_least_to_the_double_or_the_half() -> None:
    space = Space((1,), (1,), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16))
    assert {c.requests for c in space.jumps(Candidate(1, 1, 8))} == {4, 16}
    assert {c.requests for c in space.jumps(Candidate(1, 1, 2))} == {4}


def test_scouts_see_both_ends_of_streams_and_batch() -> None:
    space = SPACES[24]
    scouts = space.scouts(next(space.all()))
    assert len(scouts) <= 9
    for streams in (1, 24):
        for batch in (1, 16):
            assert any((c.streams, c.batch) == (streams, batch) for c in scouts)


def test_a_spread_has_every_choice_and_the_ends_of_every_quantity() -> None:
    space = SPACES[2]
    spread = list(space.spread(64))
    for axis in ("streams", "threads", "requests", "batch", "pinning", "path"):
        assert {getattr(c, axis) for c in spread} == set(space.values(axis))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"streams": ()}, "streams needs"),
        ({"batch": (2, 1)}, "batch must be"),
        ({"requests": (0, 1)}, "requests must be"),
        ({"path": ("sync", "sync")}, "path needs"),
        ({"threads": (1,), "streams": (2,)}, "no candidate"),
        ({"requests": (3,), "multiples": (2,)}, "no candidate"),
        ({"path": ("sync",)}, "no candidate"),
        ({"choices": {"pinning": (True, True)}}, "pinning needs"),
        ({"choices": {"path": ("sync",)}}, "path is no choice of a device"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Space(**{"streams": (1,), "threads": (1,), "requests": (1,), **changes})
