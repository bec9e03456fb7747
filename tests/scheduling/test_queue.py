"""The waiting line keeps its order and its books, and forgets whoever leaves."""

import gc
import weakref

from hypothesis import given
from hypothesis import strategies as st

from inferd.scheduling.entry import Entry
from inferd.scheduling.queue import WaitingLine
from tests.scheduling.work import work

ARRIVAL = st.tuples(st.just("append"), st.sampled_from([0, 1, 2, 7, 2**64 - 1]), st.integers(0, 100))
DEPARTURE = st.tuples(st.sampled_from(["take", "drop"]), st.integers(0, 20), st.just(0))


def order(entry: Entry) -> tuple[int, int]:
    return entry.level, entry.sequence


@given(st.lists(st.one_of(ARRIVAL, ARRIVAL, DEPARTURE), max_size=80))
def test_the_line_is_by_priority_and_first_come_first_served_within_one(
    steps: list[tuple[str, int, int]],
) -> None:
    line, expected = WaitingLine(), list[Entry]()
    for sequence, (step, number, nbytes) in enumerate(steps):
        if step == "append":
            entry = Entry(work(priority=number, nbytes=nbytes), sequence)
            line.append(entry)
            expected.append(entry)
            expected.sort(key=order)
        elif expected and step == "take":
            assert line.take(number % len(expected)) is expected.pop(number % len(expected))
        elif expected:
            line.drop(expected.pop(number % len(expected)))
        assert list(line) == expected
        assert (line.length, line.nbytes) == (len(expected), sum(e.request.nbytes for e in expected))


def test_levels_that_clients_made_up_do_not_stay() -> None:
    line = WaitingLine()
    for priority in range(1, 10_000):
        line.append(Entry(work(priority=priority), priority))
        line.take()
    assert (line._levels, line._lines) == ([], {})


def test_what_left_from_the_middle_is_not_kept_in_memory() -> None:
    line = WaitingLine()
    entries = [Entry(work(), n) for n in range(3)]
    for entry in entries:
        line.append(entry)
    reply = weakref.ref(entries[1].request.reply)

    line.drop(entries.pop(1))
    del entry
    gc.collect()

    assert reply() is None
    assert list(line) == entries
