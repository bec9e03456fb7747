"""A worker answers its supervisor's questions, and one that does not holds up nobody."""

import threading
from pathlib import Path

import pytest

from inferd.workers.channel import Channel, ask, ask_all

PATIENCE = 60.0


def test_a_word_is_answered_whole(tmp_path: Path) -> None:
    long = b"line\n" * 200_000
    channel = Channel(tmp_path / "said", {"metrics": lambda: long, "figures": lambda: b"{}"})
    channel.start()
    try:
        assert ask(tmp_path / "said", "metrics", PATIENCE) == long
        assert ask(tmp_path / "said", "figures", PATIENCE) == b"{}"
    finally:
        channel.close()
        channel.close()
    with pytest.raises(OSError, match=r"refused|No such file"):
        ask(tmp_path / "said", "figures", PATIENCE)


def test_a_new_process_takes_the_place_of_one_that_left_its_socket_behind(tmp_path: Path) -> None:
    Channel(tmp_path / "said", {})._server.server_close()
    channel = Channel(tmp_path / "said", {"word": lambda: b"here"})
    channel.start()
    assert ask(tmp_path / "said", "word", PATIENCE) == b"here"
    channel.close()


def test_who_does_not_answer_is_left_out(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise RuntimeError("broken")

    answers = {"well": lambda: b"well", "fails": fail}
    channels = {name: Channel(tmp_path / name, {"word": answer}) for name, answer in answers.items()}
    for channel in channels.values():
        channel.start()
    try:
        paths = {name: tmp_path / name for name in (*channels, "absent")}
        assert ask_all(paths, "word", PATIENCE) == {"well": b"well"}
    finally:
        for channel in channels.values():
            channel.close()
    assert ask_all({}, "word", PATIENCE) == {}


def test_one_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    going_on = threading.Event()
    channel = Channel(tmp_path / "said", {"word": lambda: b"late" if going_on.wait(PATIENCE) else b""})
    channel.start()
    try:
        with pytest.raises(TimeoutError):
            ask(tmp_path / "said", "word", 0.05)
    finally:
        going_on.set()
        channel.close()
