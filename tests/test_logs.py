"""Log lines: their form, the content of each request's line, and what never appears in one."""

import io
import json
import logging
import pty
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import pytest
import structlog

from inferd import logs
from inferd.errors import InvalidRequest
from inferd.requests import Observation, Stages
from inferd.trace_context import TraceContext

HOSTILE = "x\nready\r\x1b[31m\u2028y"


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def written(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def observation(outcome: str = "ok", **fields: Any) -> Observation:
    """A request that took 1, 2, 3, 4, 5, 6, 7 and 8 ms in its stages."""
    stages = Stages(1, *(1 + ms * 1_000_000 for ms in accumulate(range(1, 9))))
    return Observation(**({"model": "m", "version": "1", "outcome": outcome, "stages": stages} | fields))


def observed(which: Any, *seen: Observation, form: Any = "json") -> io.StringIO:
    """The request log's line about ``seen``."""
    stream = io.StringIO()
    logs.configure("info", form, stream)
    log = logs.RequestLog(which)
    for one in seen:
        log.observe(one)
    return stream


# -- form -------------------------------------------------------------------------


def test_off_a_terminal_each_event_is_a_json_object_on_one_line() -> None:
    stream = io.StringIO()
    logs.configure("info", "auto", stream)
    structlog.get_logger().info("model ready", model=HOSTILE, streams=2)
    (line,) = stream.getvalue().split("\n")[:-1]
    event = json.loads(line)
    assert event.pop("timestamp").endswith("Z")
    assert event == {"event": "model ready", "level": "info", "model": HOSTILE, "streams": 2}


def test_every_line_of_a_worker_names_it() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream, worker=0)
    structlog.get_logger("inferd").info("worker ready", grpc="127.0.0.1:8001")
    logging.getLogger("library").warning("odd")
    assert [(line["event"], line["worker"]) for line in written(stream)] == [("worker ready", 0), ("odd", 0)]


def test_on_a_terminal_lines_are_for_people() -> None:
    try:
        ours, theirs = pty.openpty()
    except OSError as error:
        pytest.skip(f"no terminal can be made here: {error}")
    with open(theirs, "w") as stream, open(ours, "rb", buffering=0) as screen:
        logs.configure("info", "auto", stream)
        structlog.get_logger().info("model ready", model="m")
        shown = screen.read(1000)
    assert b"model ready" in shown
    assert not shown.startswith(b"{")


@pytest.mark.parametrize(("form", "is_json"), [("json", True), ("console", False)])
def test_the_form_can_be_chosen(form: Any, is_json: bool) -> None:
    stream = io.StringIO()
    logs.configure("info", form, stream)
    structlog.get_logger().info("ready")
    assert stream.getvalue().startswith("{") is is_json


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_less_severe_events_are_left_out(level: str, seen: list[str]) -> None:
    stream = io.StringIO()
    logs.configure(level, "json", stream)
    log = structlog.get_logger()
    for name in logs.LEVELS:
        log.log(logs.LEVELS[name], "said")
    assert [event["level"] for event in written(stream)] == seen


def test_messages_of_libraries_have_the_same_form() -> None:
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    logging.getLogger("grpc").warning("a line\nand %s", "another")
    logging.getLogger("grpc").info("not worth it")
    (event,) = written(stream)
    assert (event["event"], event["level"]) == ("a line\nand another", "warning")


# -- faults -----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("by", ["us", "a library"])
def test_a_fault_is_logged_without_clients_data(form: Any, by: str) -> None:
    stream = io.StringIO()
    logs.configure("info", form, stream)

    def handle(payload: str) -> int:
        return len(payload) // 0

    try:
        handle("a client's " + "secret")
    except ZeroDivisionError:
        if by == "us":
            structlog.get_logger().exception("request could not be handled")
        else:
            logging.getLogger("library").exception("request could not be handled")
    assert "ZeroDivisionError" in stream.getvalue()
    assert "in handle" in stream.getvalue() or '"name": "handle"' in stream.getvalue()
    assert "a client's secret" not in stream.getvalue()
    if form == "json":
        (event,) = written(stream)
        assert event["exception"][0]["exc_type"] == "ZeroDivisionError"


# -- requests ---------------------------------------------------------------------


def test_a_requests_line_has_its_client_outcome_and_stage_times() -> None:
    (line,) = written(observed("all", observation(id="7", device="CPU", rows=3)))
    assert line.pop("timestamp")
    assert line == {
        "event": "request",
        "level": "info",
        "model": "m",
        "version": "1",
        "id": "7",
        "outcome": "ok",
        "device": "CPU",
        "batch": 3,
        "total_ms": 36.0,
        "decode_ms": 1.0,
        "queue_ms": 2.0,
        "batch_ms": 3.0,
        "input_ms": 4.0,
        "compute_ms": 5.0,
        "handover_ms": 6.0,
        "output_ms": 7.0,
        "encode_ms": 8.0,
    }


def test_a_requests_line_leads_to_its_trace() -> None:
    trace = TraceContext("0af7651916cd43dd8448eb211c80319c", "00f067aa0ba902b7", "b7ad6b7169203331", sampled=False)
    traced, untraced = written(observed("all", observation(trace=trace), observation()))
    assert (traced["trace_id"], traced["span_id"]) == (trace.trace_id, trace.span_id)
    assert {"trace_id", "span_id"}.isdisjoint(untraced)


def test_a_failed_requests_line_says_why() -> None:
    (line,) = written(observed("failed", observation("invalid", error=InvalidRequest("m", "no input"))))
    assert (line["outcome"], line["error"]) == ("invalid", "model 'm': no input")


@pytest.mark.parametrize(("which", "seen"), [("off", []), ("failed", ["invalid"]), ("all", ["ok", "invalid"])])
def test_the_setting_says_which_requests_have_a_line(which: str, seen: list[str]) -> None:
    failed = observation("invalid", error=InvalidRequest("m", "no input"))
    assert [line["outcome"] for line in written(observed(which, observation(), failed))] == seen


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_clients_text_can_not_forge_a_line(form: Any) -> None:
    stream = observed("all", observation("invalid", id=HOSTILE, error=InvalidRequest(HOSTILE, HOSTILE)), form=form)
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()


def test_a_clients_id_is_cut() -> None:
    (line,) = written(observed("all", observation(id="x" * 10_000)))
    assert len(line["id"]) == 80


def test_unwritable_lines_are_lost_and_end_no_process() -> None:
    class Full(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream = Full()
    logs.configure("info", "json", stream)
    structlog.get_logger("test").info("lost")
    logging.getLogger("grpc").warning("lost, too")
    stream.full = False
    structlog.get_logger("test").info("kept")
    assert [line["event"] for line in written(stream)] == ["kept"]
