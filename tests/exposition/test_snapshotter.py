"""The snapshot of what a version has counted."""

from inferd.exposition import snapshotter
from inferd.metrics.recorder import VersionCounters


def test_requests_beyond_a_clients_quota_are_told_from_those_shed_for_load() -> None:
    counters = VersionCounters()
    counters.requests = {
        ("CPU", "ok", ""): 90,
        ("", "overloaded", "quota"): 5,
        ("", "overloaded", "queue_full"): 3,
        # Also the client's doing, but the alerts count it.
        ("", "overloaded", "failing"): 2,
    }
    counted = snapshotter._requests(counters)
    assert counted.outcomes == {"ok": 90, "overloaded": 10}
    assert counted.over_quota == 5
