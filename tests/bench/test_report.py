"""A run's figures, the warnings about them, and the document that stores them."""

import json
from dataclasses import replace

import pytest

from inferd.bench.latencies import Latencies
from inferd.bench.load import Closed, Open
from inferd.bench.report import LatencyObjective, document, run_of
from inferd.bench.server_side import ServerSide
from tests.bench.runs import SILENT, TOLD, run, step, window

OBJECTIVE = LatencyObjective(0.02, 90.0)


def test_a_document_holds_the_whole_run() -> None:
    whole = run(
        step(Closed(8), window(errors={"UNAVAILABLE": 2}), TOLD, OBJECTIVE),
        step(Open(12.5, "constant"), window(lags=(1, 2)), SILENT, OBJECTIVE),
        objective=OBJECTIVE,
        interrupted=True,
    )
    assert run_of(json.loads(json.dumps(document(whole)))) == whole


def test_a_document_includes_derived_figures() -> None:
    said = document(run(step(Closed(2), window((10, 20, 30), 2.0, {"INTERNAL": 1}, in_time=2), TOLD, OBJECTIVE)))
    (told,) = said["steps"]
    assert told["load"] == {"kind": "closed", "concurrency": 2}
    assert (told["throughput"], told["goodput"], told["due"]) == (1.5, 1.0, 4)
    assert (told["share_in_time"], told["met"], told["errors"]) == (0.5, False, {"INTERNAL": 1})
    assert list(told["latency"]) == ["mean", "p50", "p75", "p90", "p95", "p99", "p99.9", "max"]
    assert told["latency"]["mean"] == 0.02
    assert told["latency"]["p50"] == pytest.approx(0.02, rel=0.001)
    assert told["latency"]["max"] == 0.03
    assert told["server"]["stages"]["compute_infer"] == 0.003


def test_without_an_objective_none_is_met_or_missed() -> None:
    (told,) = document(run(step()))["steps"]
    assert (told["goodput"], told["share_in_time"], told["met"]) == (None, None, None)


@pytest.mark.parametrize(
    "read",
    [
        [],
        {},
        {"inferd_bench": 2},
        {"inferd_bench": 1},
        {**document(run(step())), "steps": [{}]},
        {**document(run(step())), "steps": 3},
        {**document(run(step())), "objective": {"latency": 1.0}},
    ],
)
def test_an_invalid_document_is_one_sentence(read: object) -> None:
    with pytest.raises(ValueError, match="inferd bench"):
        run_of(read)


@pytest.mark.parametrize(("in_time", "errors", "met"), [(9, {}, True), (8, {}, False), (9, {"INTERNAL": 1}, False)])
def test_an_objective_is_met_by_all_that_were_due_errors_too(in_time: int, errors: dict[str, int], met: bool) -> None:
    assert step(seen=window([10] * 10, errors=errors, in_time=in_time), objective=OBJECTIVE).met is met


def test_an_objective_is_not_met_without_responses() -> None:
    assert step(seen=window(()), objective=OBJECTIVE).met is False


def test_memory_is_shared_out_among_the_requests_in_flight() -> None:
    # 100 answers a second of 20 ms each are two in flight.
    seen = replace(window([20] * 100), latencies=Latencies.of([20_000_000] * 100))
    one = step(seen=seen, server=replace(TOLD, rss_growth=1_000_000))
    assert one.in_flight == pytest.approx(2.0)
    assert one.memory == pytest.approx(500_000)
    assert step(seen=seen, server=replace(TOLD, rss_growth=-5)).memory == 0
    assert step(server=SILENT).memory is None
    assert step(seen=window(()), server=TOLD).memory is None


def test_a_busy_client_is_a_warning() -> None:
    (warning,) = step(Closed(4), window(busiest=0.95)).warnings()
    assert warning.startswith("4 in flight: a client process was busy for 95% of the time")
    assert step(Closed(4), window(busiest=0.85)).warnings() == []


def test_requests_that_left_late_are_a_warning() -> None:
    (warning,) = step(Open(5, "poisson"), window((10, 10), lags=(6, 6))).warnings()
    assert warning.startswith("5/s: requests left up to 6 ms late (p99)")
    assert step(Open(5, "poisson"), window((10, 10), lags=(1, 2))).warnings() == []


def test_the_server_side_of_a_document_may_be_silent() -> None:
    (told,) = run_of(json.loads(json.dumps(document(run(step()))))).steps
    assert told.server == ServerSide(None, None, None, None, None, None, None, None)
