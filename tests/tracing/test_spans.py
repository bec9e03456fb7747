"""Requests as spans as a collector receives them, and what happens to spans without a collector."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from inferd import __version__, errors
from inferd.requests import Observation, Stages
from inferd.rpc.status import code_of
from inferd.trace_context import TraceContext
from inferd.tracing.spans import Spans, stage_intervals
from tests.span_collector import Collector, Received

TRACE = TraceContext("0af7651916cd43dd8448eb211c80319c", "00f067aa0ba902b7", "b7ad6b7169203331", sampled=True)
STAGES = ["decode", "queue", "batch", "input", "compute", "handover", "output", "encode"]
MS = 1_000_000


def stages(reached: int = len(STAGES), start: int | None = None) -> Stages:
    """A request of 1 ms to decode, 2 in the queue and so on; its response came at the end of stage ``reached``."""
    marks = [*accumulate(range(1, reached + 1), initial=0)]
    start = time.monotonic_ns() - marks[-1] * MS if start is None else start
    found = Stages(*(start + mark * MS for mark in marks[:-1]))
    found.answered = start + marks[-1] * MS
    return found


def ended(error: errors.InferdError | None = None, **fields: Any) -> Observation:
    outcome = "ok" if error is None else error.outcome
    given = {"model": "m", "version": "3", "outcome": outcome, "stages": stages(), "error": error, "trace": TRACE}
    return Observation(**(given | fields))


@contextmanager
def sending(collector: Collector) -> Iterator[Spans]:
    """Spans that are all sent, or dropped, when the context ends."""
    spans = Spans(collector.endpoint, lambda error: code_of(error).name)
    try:
        yield spans
    finally:
        spans.close()


def sent(*requests: Observation) -> list[Received]:
    """The spans that a collector gets for ``requests``."""
    with Collector() as collector:
        with sending(collector) as spans:
            for request in requests:
                assert request.trace is not None
                spans.add(request, request.trace)
        return collector.spans


def whole(received: list[Received]) -> Received:
    """The span of the whole request."""
    (span,) = [span for span in received if span.kind == "SERVER"]
    return span


# -- a request --------------------------------------------------------------------


def test_a_request_is_a_span_below_the_clients_with_the_ids_known_since_it_came() -> None:
    span = whole(sent(ended()))
    assert (span.trace_id, span.span_id, span.parent_id) == (TRACE.trace_id, TRACE.span_id, TRACE.parent_id)
    assert span.parent_is_remote
    assert span.name == "infer m"


def test_a_trace_that_began_here_has_a_root() -> None:
    span = whole(sent(ended(trace=TraceContext(TRACE.trace_id, TRACE.span_id, "", sampled=True))))
    assert (span.span_id, span.parent_id, span.parent_is_remote) == (TRACE.span_id, "", False)


def test_a_span_says_what_ran_where_and_with_how_many() -> None:
    span = whole(sent(ended(device="CPU", rows=2, batch_rows=7, id="the id")))
    assert span.attributes == {
        "rpc.system.name": "grpc",
        "rpc.response.status_code": "OK",
        "inferd.model": "m",
        "inferd.version": "3",
        "inferd.outcome": "ok",
        "inferd.device": "CPU",
        "inferd.rows": 2,
        "inferd.batch_rows": 7,
        "inferd.request_id": "the id",
    }
    assert (span.status, span.status_text) == ("UNSET", "")


def test_times_are_those_of_the_wall_clock() -> None:
    before = time.time_ns()
    span = whole(sent(ended(stages=stages(1, start=time.monotonic_ns()))))
    # One clock was read slightly before the other.
    assert before - MS <= span.start <= time.time_ns() + MS
    assert span.duration == MS


@pytest.mark.parametrize("state", ["", "congo=t61rcWkgMzE", "rojo=00f067aa0ba902b7,fw529a3039@dt=Ff;0"])
def test_the_state_of_other_systems_is_passed_on(state: str) -> None:
    received = sent(
        ended(trace=TraceContext(TRACE.trace_id, TRACE.span_id, TRACE.parent_id, sampled=True, state=state))
    )
    assert {span.state for span in received} == {state}


def test_a_clients_text_is_cut_and_flattened() -> None:
    assert whole(sent(ended(id="x\n" * 1000))).attributes["inferd.request_id"] == "x " * 39 + "x…"


# -- its stages -------------------------------------------------------------------


def test_the_stages_lie_within_the_request_one_after_another() -> None:
    received = sent(ended())
    request = whole(received)
    inside = sorted((span for span in received if span is not request), key=lambda span: span.start)
    assert [span.name for span in inside] == STAGES
    assert [span.duration for span in inside] == [ms * MS for ms in range(1, 9)]
    assert {(s.kind, s.trace_id, s.parent_id, s.parent_is_remote) for s in inside} == {
        ("INTERNAL", TRACE.trace_id, TRACE.span_id, False)
    }
    assert (inside[0].start, inside[-1].end) == (request.start, request.end)
    assert len({span.span_id for span in received}) == len(received)


@pytest.mark.parametrize("place", range(len(STAGES)))
def test_a_failed_request_ended_in_the_stage_it_had_reached(place: int) -> None:
    names = [name for name, _, _ in stage_intervals(stages(place + 1))]
    assert names == STAGES[: place + 1]


def test_a_request_that_did_not_wait_to_fill_a_batch_has_no_batch_stage() -> None:
    alone = stages()
    queued, alone.held = alone.queued, 0
    found = {name: (start, end) for name, start, end in stage_intervals(alone)}
    assert list(found) == [name for name in STAGES if name != "batch"]
    assert found["queue"] == (queued, alone.started)


def test_a_call_that_waited_before_it_was_seen_has_a_stage_for_that() -> None:
    late = stages()
    received, late.received, late.waited = late.received, late.received - 70 * MS, 70 * MS
    assert next(stage_intervals(late)) == ("accept", received - 70 * MS, received)
    assert [name for name, _, _ in stage_intervals(late)] == ["accept", *STAGES]


def test_a_run_after_the_response_is_not_part_of_the_request() -> None:
    expired = stages(5)
    expired.computed = expired.answered + 1
    assert [name for name, _, _ in stage_intervals(expired)] == STAGES[:5]


@given(
    st.integers(1, 8),
    st.lists(st.integers(0, 10**12), min_size=10, max_size=10),
    st.booleans(),
    st.integers(0, 10**12),
)
def test_the_stages_of_every_request_add_up_to_all_of_it(
    reached: int, gaps: list[int], held: bool, waited: int
) -> None:
    marks = [waited + mark + 1 for mark in accumulate(gaps)]
    seen = Stages(*marks[:reached], waited=waited)
    seen.received -= waited
    seen.answered = marks[reached]
    if not held:
        seen.held = 0
    found = [*stage_intervals(seen)]
    assert (found[0][1], found[-1][2]) == (seen.received, seen.answered)
    assert all(end == start for (_, _, end), (_, start, _) in pairwise(found))
    assert sum(end - start for _, start, end in found) == seen.total()


# -- failures ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (errors.InvalidRequest("m", "no input"), "INVALID_ARGUMENT", "UNSET"),
        (errors.QueueFull("m", "4 requests", 0.1), "RESOURCE_EXHAUSTED", "UNSET"),
        (errors.Cancelled("m"), "CANCELLED", "UNSET"),
        (errors.ModelUnavailable("m", "loading"), "UNAVAILABLE", "ERROR"),
        (errors.InferenceFailed("m", "shape"), "INTERNAL", "ERROR"),
    ],
)
def test_a_failed_request_has_a_reason_and_is_an_error_only_if_the_server_failed(
    error: errors.InferdError, code: str, status: str
) -> None:
    span = whole(sent(ended(error)))
    found = {name: span.attributes.get(name) for name in ("rpc.response.status_code", "inferd.outcome", "inferd.error")}
    assert found == {
        "rpc.response.status_code": code,
        "inferd.outcome": error.outcome,
        "inferd.error": str(error),
    }
    assert span.attributes.get("inferd.reason", "") == error.reason
    assert span.status == status
    assert span.status_text == (str(error) if status == "ERROR" else "")
    assert span.attributes.get("error.type", "") == (code if status == "ERROR" else "")


# -- who sends it -----------------------------------------------------------------


def test_spans_name_their_process() -> None:
    first, second = whole(sent(ended())), whole(sent(ended()))
    assert first.scope == ("inferd", __version__)
    assert (first.resource["service.name"], first.resource["service.version"]) == ("inferd", __version__)
    assert first.resource["service.instance.id"] == second.resource["service.instance.id"] != ""


def test_opentelemetrys_own_variables_take_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ranking")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.instance.id=7")
    resource = whole(sent(ended())).resource
    assert resource["service.name"] == "ranking"
    assert (resource["deployment.environment.name"], resource["service.instance.id"]) == ("test", "7")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "bzip2"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1000000"),
    ],
)
def test_an_unusable_variable_ends_the_start(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(errors.ConfigurationError, match=r"^variables OTEL_\*: OpenTelemetry can't use them: "):
        Spans("http://127.0.0.1:4317", lambda _: "OK")


# -- a collector that does not take them ------------------------------------------


def refuse(_: int) -> None:
    raise ConnectionRefusedError("not today")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are sent without delay."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "1")


def test_an_absent_collector_costs_one_line() -> None:
    with Collector(refuse) as collector, capture_logs() as lines, sending(collector) as spans:
        for _ in range(100):
            spans.add(ended(), TRACE)
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("spans not delivered", "warning")
    assert line["endpoint"] == collector.endpoint
    assert "StatusCode.UNAVAILABLE" in line["why"]
    assert "not today" in line["why"]


@pytest.mark.usefixtures("eager")
def test_spans_are_delivered_again_once_the_collector_is_back() -> None:
    def refuse_once(asked: int) -> None:
        if not asked:
            refuse(asked)

    with Collector(refuse_once) as collector, capture_logs() as lines, sending(collector) as spans:
        for _ in range(100):
            spans.add(ended(), TRACE)
        collector.wait_for(lambda received: len(received) == 900)
    assert [line["event"] for line in lines] == ["spans not delivered", "span delivery resumed"]
    assert (lines[1]["lost_spans"], lines[1]["left_out_requests"]) == (0, 0)


@pytest.mark.usefixtures("eager")
def test_requests_without_room_are_dropped_whole_and_counted() -> None:
    asked, go_on = threading.Event(), threading.Event()

    def take(_: int) -> None:
        asked.set()
        go_on.wait()

    with Collector(take) as collector, capture_logs() as lines, sending(collector) as spans:
        try:
            spans.add(ended(), TRACE)
            asked.wait()
            for _ in range(999):
                spans.add(ended(), TRACE)
        finally:
            go_on.set()
        fitted = 4096 // 9
        received = collector.wait_for(lambda received: len(received) == fitted * 9)
    names = [span.name for span in received]
    assert {name: names.count(name) for name in names} == dict.fromkeys([*STAGES, "infer m"], fitted)
    assert [line["event"] for line in lines] == ["spans not delivered", "span delivery resumed"]
    assert lines[0]["why"] == "more spans than the collector accepts"
    assert (lines[1]["lost_spans"], lines[1]["left_out_requests"]) == (0, 1000 - fitted)


@pytest.mark.timeout(60)
def test_a_collector_that_never_answers_does_not_hold_back_the_end() -> None:
    go_on = threading.Event()

    def wait(_: int) -> None:
        go_on.wait()

    with Collector(wait) as collector, capture_logs() as lines:
        with sending(collector) as spans:
            for _ in range(400):
                spans.add(ended(), TRACE)
        go_on.set()
    assert [line["event"] for line in lines] == ["spans not delivered"]
    assert "StatusCode.CANCELLED" in lines[0]["why"]


def test_closing_twice_is_closing_once() -> None:
    with Collector() as collector:
        spans = Spans(collector.endpoint, lambda error: code_of(error).name)
        spans.add(ended(), TRACE)
        spans.close()
        spans.close()
        assert len(collector.spans) == 9
