"""A worker answers its supervisor's questions, and one that does not delays none of the others."""

import threading
from pathlib import Path

import pytest

from inferd.workers.report_socket import ReportServer, query, query_all

PATIENCE = 60.0


def test_a_word_is_answered_whole(tmp_path: Path) -> None:
    long = b"line\n" * 200_000
    server = ReportServer(tmp_path / "said", {"metrics": lambda: long, "figures": lambda: b"{}"})
    server.start()
    try:
        assert query(tmp_path / "said", "metrics", PATIENCE) == long
        assert query(tmp_path / "said", "figures", PATIENCE) == b"{}"
    finally:
        server.close()
        server.close()
    with pytest.raises(OSError, match=r"refused|No such file"):
        query(tmp_path / "said", "figures", PATIENCE)


def test_a_new_process_takes_the_place_of_one_that_left_its_socket_behind(tmp_path: Path) -> None:
    ReportServer(tmp_path / "said", {})._server.server_close()
    server = ReportServer(tmp_path / "said", {"word": lambda: b"here"})
    server.start()
    assert query(tmp_path / "said", "word", PATIENCE) == b"here"
    server.close()


def test_who_does_not_answer_is_left_out(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise RuntimeError("broken")

    answers = {"well": lambda: b"well", "fails": fail}
    servers = {name: ReportServer(tmp_path / name, {"word": answer}) for name, answer in answers.items()}
    for server in servers.values():
        server.start()
    try:
        paths = {name: tmp_path / name for name in (*servers, "absent")}
        assert query_all(paths, "word", PATIENCE) == {"well": b"well"}
    finally:
        for server in servers.values():
            server.close()
    assert query_all({}, "word", PATIENCE) == {}


def test_one_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    going_on = threading.Event()
    server = ReportServer(tmp_path / "said", {"word": lambda: b"late" if going_on.wait(PATIENCE) else b""})
    server.start()
    try:
        with pytest.raises(TimeoutError):
            query(tmp_path / "said", "word", 0.05)
    finally:
        going_on.set()
        server.close()
