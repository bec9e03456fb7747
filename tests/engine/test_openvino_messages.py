"""OpenVINO's messages go to the log in full, at a limited rate."""

from structlog.testing import capture_logs

from inferd.engine.openvino_messages import MessageLog


def test_the_whole_message_is_logged_where_a_part_of_it_was_told() -> None:
    with capture_logs() as lines:
        messages = MessageLog()
        messages.tell("Exception from a.cpp:1:\nno /srv/x.bin\n", "no x.bin")
        messages.tell("too large\n", "too large")
    assert lines == [
        {
            "event": "OpenVINO failed",
            "log_level": "warning",
            "told": "no x.bin",
            "message": "Exception from a.cpp:1: no /srv/x.bin",
        }
    ]


def test_ten_are_logged_at_once_and_then_one_a_second() -> None:
    now = 100.0
    with capture_logs() as lines:
        messages = MessageLog(lambda: now)
        for at in range(30):
            messages.tell(f"/srv/{at}", str(at))
        assert [line["told"] for line in lines] == [str(at) for at in range(10)]
        now = 101.0
        for at in range(30, 33):
            messages.tell(f"/srv/{at}", str(at))
    assert [(line["told"], line.get("others_since")) for line in lines[10:]] == [("30", 20)]


def test_a_cancelled_run_is_no_failure() -> None:
    with capture_logs() as lines:
        MessageLog().tell(
            "Exception from infer_request.cpp:259: Caught exception: Infer Request was canceled",
            "Caught exception: Infer Request was canceled",
        )
    assert lines == []
