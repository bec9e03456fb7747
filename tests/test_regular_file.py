"""Only regular files up to a size are read; anything else is refused at once, without opening or filling memory."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd import regular_file
from tests.odd_files import listening_socket, sparse

KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "not a regular file"),
    "socket": (listening_socket, "not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "terminal": (lambda path: path.symlink_to("/dev/ptmx"), "not a regular file"),
    "link to a pipe": (lambda p: (os.mkfifo(p.with_name("pipe")), p.symlink_to("pipe")), "not a regular file"),
    "sparse": (sparse, "larger than 1048576 bytes"),
    "folder": (Path.mkdir, "Is a directory"),
    "nothing": (lambda _: None, "No such file or directory"),
}


@pytest.mark.parametrize(("make", "problem"), KINDS.values(), ids=KINDS.keys())
def test_what_is_no_small_regular_file_is_refused(tmp_path: Path, make: Callable[[Path], object], problem: str) -> None:
    path = tmp_path / "it"
    make(path)
    with pytest.raises(OSError) as raised:  # noqa: PT011 - strerror is what callers show
        regular_file.read(path)
    assert raised.value.strerror == problem


@pytest.mark.parametrize("size", [0, 1, regular_file.SMALL_BYTES])
def test_a_file_up_to_the_limit_is_read(tmp_path: Path, size: int) -> None:
    (tmp_path / "it").write_bytes(os.urandom(size))
    assert regular_file.read(tmp_path / "it") == (tmp_path / "it").read_bytes()


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_limit_is_exact(tmp_path_factory: pytest.TempPathFactory, size: int, most: int) -> None:
    path = tmp_path_factory.mktemp("sizes") / "it"
    path.write_bytes(b"x" * size)
    try:
        assert len(regular_file.read(path, most)) == size <= most
    except OSError:
        assert size > most


def test_a_file_that_states_no_size_is_limited_as_well() -> None:
    with pytest.raises(OSError, match="larger than 10 bytes"):
        regular_file.read(Path("/proc/self/status"), 10)


def test_nothing_stays_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "big").write_bytes(b"xx")
    before = set(os.listdir("/proc/self/fd"))
    for path, most in ((tmp_path / "pipe", 9), (tmp_path / "big", 1), (tmp_path / "big", 2)):
        try:
            regular_file.read(path, most)
        except OSError:
            continue
    assert set(os.listdir("/proc/self/fd")) == before
