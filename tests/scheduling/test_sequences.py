"""Sequences: one request at a time, in order, on a state that is sound or gone, and owned by one client."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.errors import InferdError, SequenceGone, SequenceLost, TooManySequences
from inferd.requests import Request, SequenceStep
from inferd.scheduling import sequences
from inferd.scheduling.entry import Run
from inferd.scheduling.rules import PoolSpec, QueueLimits, SchedulerRules
from inferd.scheduling.scheduler import Scheduler
from inferd.scheduling.sequences import SequenceLimits
from tests.scheduling.work import work


def scheduler(*, pinned: bool = False, slots: int = 4, width: int = 4, most: int = 2) -> Scheduler:
    rules = SchedulerRules(QueueLimits(100, 1000), sequences=SequenceLimits(most, 100), pinned=pinned)
    return Scheduler("m", rules, [PoolSpec(slots, width)])


def step(
    to: Scheduler, name: int | str, *, start: bool = False, end: bool = False, now: int = 0, client: str = ""
) -> Request:
    request = work(step=SequenceStep(name, start, end, client=client))
    to.submit(request, now)
    return request


def started(one: Scheduler, now: int) -> list[tuple[Request, int]]:
    return [(run.members[0].request, run.slot) for run in one.poll(now).starts]


def test_requests_of_a_sequence_run_one_after_the_other() -> None:
    one = scheduler()
    asked = [step(one, "a", start=True), step(one, "a"), step(one, "a", end=True)]
    for now, request in enumerate(asked):
        ((running, slot),) = started(one, now)
        assert running is request
        one.finished(0, slot, now)
    assert one.sequences == 0


def test_a_sequence_that_was_never_started_or_has_ended_is_gone() -> None:
    one = scheduler()
    with pytest.raises(SequenceGone, match="is not known"):
        step(one, "a")
    step(one, "a", start=True, end=True)
    with pytest.raises(SequenceGone, match="has ended"):
        step(one, "a")


def test_live_sequences_stay_within_the_limit() -> None:
    one = scheduler()
    step(one, "a", start=True)
    step(one, "b", start=True)
    with pytest.raises(TooManySequences):
        step(one, "c", start=True)


def test_a_failed_request_loses_its_sequence_and_the_requests_behind_it() -> None:
    one = scheduler()
    step(one, "a", start=True)
    behind = step(one, "a")
    ((_, slot),) = started(one, 0)
    one.finished(0, slot, 1, ok=False)
    ((refused, error),) = one.poll(1).refused
    assert refused is behind
    assert isinstance(error, SequenceLost)
    with pytest.raises(SequenceLost, match="failed"):
        step(one, "a", now=2)


def test_a_sequence_that_rests_too_long_is_over() -> None:
    one = scheduler()
    step(one, "a", start=True)
    ((_, slot),) = started(one, 0)
    one.finished(0, slot, 10)
    assert one.poll(109).wake_at == 110
    one.poll(110)
    with pytest.raises(SequenceGone, match="timed out"):
        step(one, "a", now=111)


def test_a_pinned_sequence_keeps_its_slot_while_others_run() -> None:
    one = scheduler(pinned=True, slots=2, width=1)
    slots = []
    for now, (name, start) in enumerate([("a", True), ("b", True), ("a", False), ("b", False)]):
        step(one, name, start=start, now=now)
        ((_, slot),) = started(one, now)
        one.finished(0, slot, now)
        slots.append(slot)
    assert slots[0] != slots[1]
    assert slots[2:] == slots[:2]


# -- clients ----------------------------------------------------------------------


def said(one: Scheduler, name: int | str, *, ok: bool = True, now: int = 0, client: str = "", **flags: bool) -> str:
    """How a request that runs at once ends: "" for success, or the error's sentence."""
    one.poll(now)
    try:
        step(one, name, now=now, client=client, **flags)
    except InferdError as error:
        return f"{type(error).__name__}: {error}"
    for run in one.poll(now).starts:
        one.finished(run.pool, run.slot, now, ok=ok)
    return ""


UNKNOWN = "SequenceGone: model 'm': sequence '{}' is not known; begin with sequence_start"


def test_a_client_does_not_see_another_clients_sequence() -> None:
    one = scheduler(most=100)
    assert said(one, 42, start=True, client="a") == ""
    for flags in ({}, {"end": True}):
        assert said(one, 42, client="b", **flags) == UNKNOWN.format(42)
    assert said(one, 42, client="a") == ""


def test_another_client_with_the_same_id_replaces_and_ends_nothing() -> None:
    one = scheduler(most=100)
    said(one, 42, start=True, client="a")
    assert said(one, 42, start=True, client="b") == ""
    assert one.sequences == 2
    assert said(one, 42, end=True, client="b") == ""
    assert said(one, 42, client="a") == ""
    assert one.sequences == 1


@pytest.mark.parametrize(
    ("end", "ok", "now", "own"),
    [
        (True, True, 1, "has ended"),
        (False, False, 1, "is lost: one of its requests failed"),
        (False, True, 100, "timed out after"),
    ],
)
def test_only_its_own_client_learns_how_a_sequence_ended(end: bool, ok: bool, now: int, own: str) -> None:
    one = scheduler(most=100)
    said(one, 42, start=True, end=end, ok=ok, client="a")
    assert said(one, 42, client="b", now=now) == UNKNOWN.format(42)
    assert own in said(one, 42, client="a", now=now)


def test_a_client_pushes_only_its_own_sequences_out_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sequences, "_REMEMBERED", 10)
    one = scheduler(most=100)
    said(one, 0, start=True, end=True, client="a")
    for number in range(50):
        said(one, number, start=True, end=True, client="b")
    assert "has ended" in said(one, 0, client="a")
    remembered = [number for number in range(50) if "has ended" in said(one, number, client="b")]
    assert remembered == list(range(41, 50))


class Server:
    """A scheduler with a slot for every request, and what each client has seen of it."""

    def __init__(self, *, pinned: bool) -> None:
        self.scheduler = scheduler(pinned=pinned, slots=40, width=40, most=40)
        self.runs: dict[str, list[Run]] = {"a": [], "b": []}
        self.asked: dict[str, list[Request]] = {"a": [], "b": []}
        self.seen: dict[str, list[str]] = {"a": [], "b": []}

    def act(self, client: str, action: str, name: int | str, start: bool, end: bool, now: int) -> None:
        if action == "ask":
            # Over the client's own stream, or over none.
            owner = client if isinstance(name, str) else None
            request = work(step=SequenceStep(name, start, end, owner, client))
            try:
                self.scheduler.submit(request, now)
                self.asked[client].append(request)
            except InferdError as error:
                self.seen[client].append(f"{type(error).__name__}: {error}")
        elif action == "disconnect":
            self.scheduler.disconnected(client, now)
        elif action == "cancel" and self.asked[client]:
            self.seen[client].append(f"cancelled {self.scheduler.cancel(self.asked[client][-1], now)}")
        elif action in ("end well", "fail") and self.runs[client]:
            run = self.runs[client].pop(0)
            for entry in self.scheduler.finished(run.pool, run.slot, now, ok=action == "end well"):
                self.seen[client].append(f"{action}: {self.asked[client].index(entry.request)}")
        self.look(now)

    def look(self, now: int) -> None:
        plan = self.scheduler.poll(now)
        for request, error in plan.refused:
            client = request.step.client if request.step is not None else ""
            self.seen[client].append(f"{self.asked[client].index(request)}: {error}")
        for run in plan.starts:
            step = run.members[0].request.step
            assert step is not None
            self.runs[step.client].append(run)
            self.seen[step.client].append(f"run {self.asked[step.client].index(run.members[0].request)}")


ACTIONS = ["ask"] * 4 + ["end well"] * 3 + ["fail", "cancel", "disconnect"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.sampled_from(ACTIONS),
            st.sampled_from([1, "1"]),
            st.booleans(),
            st.sampled_from([False, False, True]),
            st.sampled_from([0, 1, 60]),
        ),
        min_size=20,
        max_size=80,
    ),
    st.booleans(),
)
def test_clients_with_the_same_ids_get_what_they_would_get_on_separate_servers(
    steps: list[tuple[str, str, int | str, bool, bool, int]], pinned: bool
) -> None:
    shared, own = Server(pinned=pinned), {client: Server(pinned=pinned) for client in "ab"}
    now = 0
    for client, action, name, start, end, later in steps:
        now += later
        for server in (shared, *own.values()):
            server.look(now)
        for server in (shared, own[client]):
            server.act(client, action, name, start, end, now)
        assert {client: shared.seen[client] for client in "ab"} == {client: own[client].seen[client] for client in "ab"}
        assert shared.scheduler.sequences == sum(server.scheduler.sequences for server in own.values())


# -- a client's part of the places -------------------------------------------------


@pytest.mark.parametrize(("most", "begun"), [(1024, 768), (16, 12), (8, 6), (4, 3), (3, 2), (2, 1), (1, 1)])
def test_a_single_client_gets_most_places_but_not_all(most: int, begun: int) -> None:
    one = scheduler(most=most, slots=1024)
    answers = [said(one, number, start=True, client="a") for number in range(1, most + 2)]
    assert answers.count("") == begun
    if begun < most:
        assert answers[begun].startswith(
            f"TooManySequences: model 'm': this client has {begun} of {most} live sequences; the rest are reserved "
            "for other clients; retry in "
        )
        assert said(one, 1, start=True, end=True, client="b") == ""
    # Live sequences continue, may begin again, and make room for themselves.
    assert [said(one, number, client="a") for number in range(1, begun + 1)] == [""] * begun
    assert said(one, 1, start=True, end=True, client="a") == ""
    assert said(one, 2000, start=True, client="a") == ""


def test_clients_that_can_not_be_told_apart_share_all_places() -> None:
    one = scheduler(most=16, slots=16)
    assert [said(one, number, start=True) for number in range(1, 17)] == [""] * 16
    assert "the limit of 16 live sequences is reached" in said(one, 17, start=True)


def test_a_client_at_its_share_is_told_when_its_next_sequence_times_out() -> None:
    one = scheduler(most=4)
    said(one, 1, start=True, client="b")
    for number in range(2):
        said(one, number, start=True, now=50 + number, client="a")
    with pytest.raises(TooManySequences) as refused:
        step(one, 3, start=True, now=60, client="a")
    assert refused.value.retry_after == 90 / 1e9


def test_a_sequence_whose_last_run_continues_keeps_its_place() -> None:
    one = scheduler(pinned=True, most=2)
    running = step(one, 1, start=True, client="a")
    ((_, slot),) = started(one, 0)
    one.cancel(running, 1)
    one.poll(1)
    with pytest.raises(TooManySequences):
        step(one, 2, start=True, now=1, client="a")
    one.finished(0, slot, 2, ok=False)
    step(one, 2, start=True, now=2, client="a")


@given(
    st.lists(st.tuples(st.sampled_from("aaaab"), st.integers(0, 9), st.sampled_from([True, True, False])), min_size=15),
    st.integers(2, 6),
)
def test_a_newcomer_finds_a_place_whatever_one_client_does(steps: list[tuple[str, int, bool]], most: int) -> None:
    """Until others with their full shares come first: each leaves a quarter of what it finds."""
    one = scheduler(most=most, slots=most)
    live: Counter[str] = Counter()
    for client, name, start in steps:
        free, before = most - one.sequences, one.sequences
        answer = said(one, name, start=start, end=not start, client=client)
        live[client] += one.sequences - before
        assert sum(live.values()) == one.sequences
        if start and free and not live[client]:
            raise AssertionError(f"a place was free, and a client with none was told {answer}")
        if len(+live) == 1:
            assert one.sequences < most
    newcomer = said(one, 1, start=True, client="d")
    assert (newcomer == "") == (sum(live.values()) < most)
