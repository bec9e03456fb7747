"""Counts of workers stay after the workers have ended."""

from hypothesis import given
from hypothesis import strategies as st

from inferd.metrics.retired_counters import RetiredCounters


def adding() -> RetiredCounters[str, int]:
    return RetiredCounters(lambda before, last: (before or 0) + last)


def total(counters: RetiredCounters[str, int]) -> int:
    return sum(counters.parts.values()) + (counters.retired or 0)


def test_who_says_nothing_counts_with_what_it_said_last() -> None:
    counters = adding()
    counters.update({"a": 3, "b": 4}, {"a", "b"})
    counters.update({"a": 5}, {"a", "b"})
    assert counters.parts == {"a": 5, "b": 4}
    assert counters.retired is None


def test_who_is_gone_is_kept_and_its_successor_is_another() -> None:
    counters = adding()
    counters.update({"a": 3, "b": 4}, {"a", "b"})
    counters.update({"b": 4}, {"b", "a again"})
    assert (counters.parts, counters.retired) == ({"b": 4}, 3)
    counters.update({"b": 4, "a again": 1}, {"b", "a again"})
    assert total(counters) == 8


def test_what_comes_from_one_that_is_gone_is_passed_over() -> None:
    counters = adding()
    counters.update({"a": 3}, set())
    assert (counters.parts, counters.retired) == ({}, None)


def test_what_one_says_no_more_is_kept() -> None:
    def fold(before: set[str] | None, last: set[str]) -> set[str]:
        return (before or set()) | last

    counters = RetiredCounters[str, set[str]](fold, lambda before, now: before - now)
    counters.update({"a": {"x", "y"}}, {"a"})
    assert counters.retired is None
    counters.update({"a": {"y"}, "b": {"z"}}, {"a"})
    assert (counters.parts, counters.retired) == ({"a": {"y"}}, {"x"})
    counters.update({}, {"a"})
    assert (counters.parts, counters.retired) == ({"a": {"y"}}, {"x"})


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.sampled_from(["count", "count", "die", "miss"]))))
def test_the_total_never_falls(steps: list[tuple[int, int, str]]) -> None:
    counters = adding()
    counts, generations, before = [0] * 4, [0] * 4, 0
    for worker, more, what in steps:
        said = {f"{w} {g}": counts[w] for w, g in enumerate(generations)}
        if what == "die":
            generations[worker] += 1
            counts[worker] = 0
            said = {f"{w} {g}": counts[w] for w, g in enumerate(generations)}
        elif what == "miss":
            said.pop(f"{worker} {generations[worker]}")
        else:
            counts[worker] += more
            said[f"{worker} {generations[worker]}"] = counts[worker]
        counters.update(said, {f"{w} {g}" for w, g in enumerate(generations)})
        assert total(counters) >= before
        before = total(counters)
