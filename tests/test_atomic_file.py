"""A file appears as a whole or not at all."""

from pathlib import Path

import pytest

from inferd import atomic_file


def test_parts_one_after_another_replace_the_old_content(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"before")
    atomic_file.write(file, b"one", memoryview(b" two"))
    assert file.read_bytes() == b"one two"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"before")
    with pytest.raises(TypeError):
        atomic_file.write(file, b"one", "no bytes")  # type: ignore[arg-type]
    assert file.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic_file.write(tmp_path / "nowhere" / "file", b"")
