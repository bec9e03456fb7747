"""What workers have counted stays when they go."""

from hypothesis import given
from hypothesis import strategies as st

from inferd.workers.ledger import Ledger


def adding() -> Ledger[str, int]:
    return Ledger(lambda before, last: (before or 0) + last)


def total(ledger: Ledger[str, int]) -> int:
    return sum(ledger.parts.values()) + (ledger.departed or 0)


def test_who_says_nothing_counts_with_what_it_said_last() -> None:
    ledger = adding()
    ledger.take({"a": 3, "b": 4}, {"a", "b"})
    ledger.take({"a": 5}, {"a", "b"})
    assert ledger.parts == {"a": 5, "b": 4}
    assert ledger.departed is None


def test_who_is_gone_is_kept_and_its_successor_is_another() -> None:
    ledger = adding()
    ledger.take({"a": 3, "b": 4}, {"a", "b"})
    ledger.take({"b": 4}, {"b", "a again"})
    assert (ledger.parts, ledger.departed) == ({"b": 4}, 3)
    ledger.take({"b": 4, "a again": 1}, {"b", "a again"})
    assert total(ledger) == 8


def test_what_comes_from_one_that_is_gone_is_passed_over() -> None:
    ledger = adding()
    ledger.take({"a": 3}, set())
    assert (ledger.parts, ledger.departed) == ({}, None)


def test_what_one_says_no_more_is_kept() -> None:
    def fold(before: set[str] | None, last: set[str]) -> set[str]:
        return (before or set()) | last

    ledger = Ledger[str, set[str]](fold, lambda before, now: before - now)
    ledger.take({"a": {"x", "y"}}, {"a"})
    assert ledger.departed is None
    ledger.take({"a": {"y"}, "b": {"z"}}, {"a"})
    assert (ledger.parts, ledger.departed) == ({"a": {"y"}}, {"x"})
    ledger.take({}, {"a"})
    assert (ledger.parts, ledger.departed) == ({"a": {"y"}}, {"x"})


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.sampled_from(["count", "count", "die", "miss"]))))
def test_the_total_never_falls(steps: list[tuple[int, int, str]]) -> None:
    ledger = adding()
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
        ledger.take(said, {f"{w} {g}" for w, g in enumerate(generations)})
        assert total(ledger) >= before
        before = total(ledger)
