"""The request queue keeps its order and its counts, and forgets entries that leave."""

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.scheduling.entry import Entry
from inferd.scheduling.queue import PATIENCE, RequestQueue
from tests.scheduling.work import work

ARRIVAL = st.tuples(st.just("append"), st.sampled_from([0, 1, 2, 7, 2**64 - 1]), st.integers(1, 9))
DEPARTURE = st.tuples(st.sampled_from(["take", "drop"]), st.integers(0, 20), st.just(0))


def order(entry: Entry) -> tuple[int, int, int]:
    return entry.level, entry.due, entry.arrival


def entry_of(arrival: int, priority: int = 0, rows: int = 1, batch_key: int | None = None, due: int = 0) -> Entry:
    entry = Entry(work(priority=priority, rows=rows, batch_key=batch_key), arrival, 100 + arrival)
    entry.due = due
    return entry


@given(st.lists(st.one_of(ARRIVAL, ARRIVAL, DEPARTURE), max_size=80), st.sampled_from([1, 3, 1000]))
def test_the_queue_is_ordered_by_priority_and_within_a_level_by_due_time(
    steps: list[tuple[str, int, int]], dues: int
) -> None:
    queue, expected = RequestQueue(), list[Entry]()
    for arrival, (step, number, rows) in enumerate(steps):
        if step == "append":
            entry = entry_of(arrival, number, rows, rows % 2, due=arrival * 7919 % dues)
            queue.append(entry)
            expected.append(entry)
            expected.sort(key=order)
        elif expected and step == "take":
            place = number % len(expected)
            assert queue.first(place) is expected[place]
            queue.drop(expected.pop(place))
        elif expected:
            queue.drop(expected.pop(number % len(expected)))
        assert list(queue) == expected
        assert queue.length == len(expected)
        for batch_key in (0, 1):
            assert queue.rows(batch_key) == sum(e.request.rows for e in expected if e.request.batch_key == batch_key)
        for level in {e.level for e in expected} | {3}:
            assert queue.rows_ahead(level, 1000) == sum(e.request.rows for e in expected if e.level <= level)
            better = sum(e.request.rows for e in expected if e.level < level)
            assert queue.rows_ahead(level, -1) == better
            within = queue.rows_ahead(level, dues // 2) - better
            own = [e for e in expected if e.level == level]
            ahead = [e for e in own if e.due <= dues // 2]
            mean = sum(e.request.rows for e in own) / max(1, len(own))
            assert within == pytest.approx(len(ahead) * mean)
        assert queue.oldest == min((e.since for e in expected), default=0)
        if expected:
            assert queue.last() is expected[-1]


def test_equally_due_requests_keep_their_order_of_arrival() -> None:
    queue = RequestQueue()
    entries = [entry_of(n, due=5) for n in (3, 1, 2)]
    for entry in entries:
        queue.append(entry)
    assert [entry.arrival for entry in queue] == [1, 2, 3]


def test_empty_levels_are_forgotten() -> None:
    queue = RequestQueue()
    for priority in range(1, 10_000):
        queue.append(Entry(work(priority=priority, batch_key=priority), priority, 0))
        queue.drop(queue.first())
    assert (queue._levels, queue._queues, queue._rows, queue._rows_by_key) == ([], {}, {}, {})


def test_an_entry_removed_from_the_middle_is_freed() -> None:
    queue = RequestQueue()
    entries = [Entry(work(), n, 0) for n in range(3)]
    for entry in entries:
        queue.append(entry)
    reply = weakref.ref(entries[1].request.reply)

    queue.drop(entries.pop(1))
    del entry
    gc.collect()

    assert reply() is None
    assert list(queue) == entries


def test_an_entry_passed_over_by_many_better_ones_goes_next() -> None:
    queue = RequestQueue()
    patient = Entry(work(priority=9), 0, 0)
    queue.append(patient)
    taken = []
    for arrival in range(1, PATIENCE + 2):
        queue.append(Entry(work(priority=1), arrival, 0))
        taken.append(queue.first())
        queue.started(taken[-1])
    assert [entry is patient for entry in taken] == [False] * PATIENCE + [True]


def test_a_request_that_is_put_back_gets_its_old_place() -> None:
    queue = RequestQueue()
    first, second = (Entry(work(), n, 0) for n in range(2))
    queue.append(first)
    queue.append(second)
    queue.started(first)
    queue.append(first)
    assert list(queue) == [first, second]
