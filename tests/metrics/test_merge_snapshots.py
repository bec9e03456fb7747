"""The merged snapshots of several workers equal the snapshot of one server."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from inferd.metrics import merge_snapshots
from inferd.metrics.merge_snapshots import SupervisorFacts
from inferd.metrics.process_usage import ProcessUsage
from inferd.metrics.snapshot import ServerSnapshot, VersionSnapshot
from tests.metrics import made_up

DEVICE = made_up.device("CPU", 1, 2, 3, "FP32")
WHOLE = SupervisorFacts(at=50.0, started=1.0, process=ProcessUsage(7, 0.5), phase="ready")


def model(name: str = "m", **changes: Any) -> VersionSnapshot:
    """One that has done something."""
    known: dict[str, Any] = {
        "bounds": (0.1, 1.0),
        "counts": (1, 2, 3),
        "seconds": 4.0,
        "outcomes": {"ok": 6, "invalid": 1},
        "rows": 6,
        "waiting": 2,
        "oldest": 0.5,
        "in_flight": 3,
        "limit": 10,
        "running": 1,
        "devices": (DEVICE,),
    }
    return made_up.model(name, **known | changes)


def server(*models: VersionSnapshot) -> ServerSnapshot:
    return made_up.server(models=models, rss_bytes=100, cpu_seconds=3.0, other={"not_found": 1})


def merged(*parts: ServerSnapshot, retired: ServerSnapshot | None = None) -> ServerSnapshot:
    whole = merge_snapshots.merge(dict(enumerate(parts)), retired, WHOLE)
    assert whole is not None
    return whole


def test_counts_add_up_and_the_supervisor_counts_too() -> None:
    whole = merged(server(model()), server(model(oldest=2.0, tuning="settled: kept")))
    assert (whole.at, whole.started, whole.phase) == (50.0, 1.0, "ready")
    assert (whole.process, whole.other) == (ProcessUsage(207, 6.5), {"not_found": 2})
    (one,) = whole.versions
    assert one == model(
        counts=(2, 4, 6),
        seconds=8.0,
        outcomes={"ok": 12, "invalid": 2},
        rows=12,
        waiting=4,
        oldest=2.0,
        in_flight=6,
        limit=20,
        running=2,
        devices=(made_up.device("CPU", 2, 4, 6, "FP32"),),
        tuning="settled: kept",
    )


def test_what_quotas_refused_adds_up_and_what_the_tuner_does_comes_with_its_phase() -> None:
    tuned = {"tuner": "searching", "tuning": "searching: 3 of 40"}
    (one,) = merged(server(model(over_quota=2, **tuned)), server(model(over_quota=5, tuner="settled"))).versions
    assert one.requests.over_quota == 7
    assert one.tuning is not None
    assert (one.tuning.phase, one.tuning.text) == ("searching", "searching: 3 of 40")


def test_a_model_that_one_of_them_serves_is_served_and_the_reason_says_where_not() -> None:
    whole = merged(server(model(state="LOADING")), server(model()), server(model(state="UNAVAILABLE", reason="broken")))
    assert whole.versions[0].state == "READY"
    assert whole.versions[0].reason == "LOADING in worker 0; UNAVAILABLE in worker 2 (broken)"
    nowhere = merged(server(model(state="UNAVAILABLE", reason="broken")), server(model(state="LOADING")))
    assert (nowhere.versions[0].state, nowhere.versions[0].reason) == ("UNAVAILABLE", "broken")


def test_a_model_that_not_all_have_is_there() -> None:
    whole = merged(server(model("b")), server(model("a"), model("b")))
    assert [(m.model, m.requests.rows) for m in whole.versions] == [("a", 6), ("b", 12)]


def test_other_bounds_count_where_their_upper_bound_lies() -> None:
    other = model(bounds=(0.1, 0.5, 1.0), counts=(1, 10, 100, 1000))
    assert merged(server(model()), server(other)).versions[0].requests.counts == (2, 112, 1003)


def test_what_departed_have_counted_stays_and_what_they_did_is_over() -> None:
    gone = merge_snapshots.add_retired(
        merge_snapshots.add_retired(None, server(model(), model("other"))), server(model())
    )
    whole = merged(server(model()), retired=gone)
    assert [m.model for m in whole.versions] == ["m"]
    assert (whole.versions[0].requests.rows, whole.versions[0].requests.counts) == (18, (3, 6, 9))
    assert whole.versions[0].queue is not None
    assert (whole.versions[0].queue.waiting, whole.versions[0].devices) == (2, (DEVICE,))
    assert (whole.process, whole.other) == (ProcessUsage(107, 9.5), {"not_found": 3})


def test_before_any_worker_has_spoken_there_is_nothing_to_show() -> None:
    assert merge_snapshots.merge({}, server(), WHOLE) is None


@given(st.builds(server, st.builds(model, st.text(), reason=st.text(), oldest=st.floats(0, 1e9))))
def test_what_is_sent_is_what_is_read(said: ServerSnapshot) -> None:
    assert merge_snapshots.from_json(merge_snapshots.as_json(said)) == said
