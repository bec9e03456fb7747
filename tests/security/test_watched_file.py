"""A value read from files follows their changes, and survives their errors."""

import os
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from inferd.config import tokens
from inferd.errors import ConfigurationError
from inferd.security.watched_file import WatchedFile


class Number(WatchedFile[int]):
    """A number in a file; ``reads`` counts how often it was read."""

    def __init__(self, file: Path) -> None:
        self.reads = 0

        def read() -> int:
            self.reads += 1
            try:
                return int(file.read_text())
            except (OSError, ValueError):
                raise ConfigurationError(str(file), "", "no number") from None

        super().__init__("number", [file], read)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "number"
    found.write_text("1")
    return found


def test_an_unchanged_file_is_not_read_again(file: Path) -> None:
    number = Number(file)
    for _ in range(3):
        number.look()
    assert (number.value, number.reads, number.readings) == (1, 1, {"ok": 0, "failed": 0})


def test_a_change_is_adopted(file: Path) -> None:
    number = Number(file)
    file.write_text("22")
    number.look()
    assert (number.value, number.current, number.readings) == (22, True, {"ok": 1, "failed": 0})


def test_a_replaced_file_is_adopted_even_if_it_looks_the_same(file: Path, tmp_path: Path) -> None:
    number, before = Number(file), file.stat()
    other = tmp_path / "other"
    other.write_text("2")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    number.look()
    assert number.value == 2


def test_the_target_of_a_link_is_watched(file: Path, tmp_path: Path) -> None:
    link, other = tmp_path / "link", tmp_path / "other"
    link.symlink_to(file)
    other.write_text("2")
    number = Number(link)
    (tmp_path / "new").symlink_to(other)
    (tmp_path / "new").replace(link)
    number.look()
    assert number.value == 2


def test_an_unusable_change_has_no_effect_and_is_logged_once(file: Path) -> None:
    number = Number(file)
    with capture_logs() as said:
        file.write_text("two")
        number.look()
        number.look()
    assert (number.value, number.current, number.readings) == (1, False, {"ok": 0, "failed": 1})
    assert said == [
        {
            "log_level": "error",
            "event": "credentials not reloaded",
            "kind": "number",
            "problem": f"{file}: no number",
        }
    ]


def test_a_file_that_disappears_and_returns_is_adopted_again(file: Path) -> None:
    number = Number(file)
    file.unlink()
    number.look()
    assert (number.value, number.current) == (1, False)
    file.write_text("3")
    with capture_logs() as said:
        number.look()
    assert (number.value, number.current, number.readings) == (3, True, {"ok": 1, "failed": 1})
    assert [line["event"] for line in said] == ["credentials reloaded"]


def test_an_unchanged_file_can_be_read_again_on_request(file: Path) -> None:
    number = Number(file)
    number.look(anyway=True)
    assert (number.reads, number.readings) == (2, {"ok": 1, "failed": 0})


def test_the_file_must_be_usable_at_start(file: Path) -> None:
    file.write_text("x")
    with pytest.raises(ConfigurationError, match="no number"):
        Number(file)


def test_files_that_do_not_answer_are_stale_until_they_do(tmp_path: Path) -> None:
    file, answers = tmp_path / "number", threading.Event()
    file.write_text("1")
    answers.set()

    def read() -> int:
        answers.wait()
        return int(file.read_text())

    number = WatchedFile("number", [file], read, seconds=0.2)
    answers.clear()
    file.write_text("22")
    with capture_logs() as said:
        for _ in range(3):
            number.look()
    assert (number.value, number.current, number.readings) == (1, False, {"ok": 0, "failed": 1})
    assert [line["problem"] for line in said] == [f"no answer for 0.2 s from {file}"]

    (hanging,) = (thread for thread in threading.enumerate() if thread.name == "patience")
    answers.set()
    hanging.join(10)
    number.look()
    assert (number.value, number.current, number.readings) == (22, True, {"ok": 1, "failed": 1})


def test_files_that_do_not_answer_at_first_are_an_error(tmp_path: Path) -> None:
    answers = threading.Event()
    with pytest.raises(ConfigurationError, match=r"no answer for 0\.05 s"):
        WatchedFile("number", [tmp_path], lambda: answers.wait() and 1, seconds=0.05)
    answers.set()


def test_a_pipe_in_place_of_a_tokens_file_is_stale_and_blocks_nothing(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(f'[[token]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["read"]\n')
    watched = WatchedFile("tokens", [file], lambda: tokens.read(file))
    before, text = watched.value, file.read_text()
    file.unlink()
    os.mkfifo(file)
    with capture_logs() as said:
        watched.look(anyway=True)
    assert (watched.value, watched.current) == (before, False)
    assert [line["problem"] for line in said] == [f"{file}: not a regular file"]

    file.unlink()
    file.write_text(text)
    watched.look()
    assert watched.current
