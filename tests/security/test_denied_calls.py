"""All denied calls are counted, and they can't fill the log."""

from structlog.testing import capture_logs

from inferd.errors import NotAllowed, NotAuthenticated, OutOfScope
from inferd.security.denied_calls import ENDPOINTS, REASONS, DeniedCalls


def test_every_reason_counts_from_zero_so_that_the_first_denial_is_a_rise() -> None:
    assert dict(DeniedCalls().counts) == {(endpoint, reason): 0 for endpoint in ENDPOINTS for reason in REASONS}
    assert set(REASONS) == {"missing", "malformed", "unknown", "expired", "scope"}


def test_a_log_line_names_caller_and_call_at_most_once_a_second() -> None:
    now = 100.0
    denied = DeniedCalls(lambda: now)
    with capture_logs() as said:
        for _ in range(5):
            denied.add("grpc", "ModelInfer", OutOfScope("ModelInfer", "infer", "reader"), "ipv4:10.0.0.1:5")
        now = 101.0
        denied.add("metrics", "/metrics", NotAuthenticated("expired", "old"), "10.0.0.2")
        now = 102.0
        denied.add("metrics", "/metrics", NotAuthenticated("unknown"), "10.0.0.2")
    assert [
        (line["endpoint"], line["reason"], line["client"], line["peer"], line.get("others_since")) for line in said
    ] == [
        ("grpc", "scope", "reader", "ipv4:10.0.0.1:5", None),
        ("metrics", "expired", "old", "10.0.0.2", 4),
        ("metrics", "unknown", "", "10.0.0.2", None),
    ]
    assert {key: n for key, n in denied.counts.items() if n} == {
        ("grpc", "scope"): 5,
        ("metrics", "expired"): 1,
        ("metrics", "unknown"): 1,
    }


def test_another_refusal_has_no_name() -> None:
    with capture_logs() as said:
        DeniedCalls().add("grpc", "X", NotAllowed("X"), "p")
    assert said[0]["client"] == ""
