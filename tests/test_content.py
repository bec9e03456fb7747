"""Which files belong to a version, whether they changed, and what their digest covers."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferd import content as contents
from inferd.content import Bounds, Content, FileSet
from inferd.errors import RepositoryError
from tests.effort import examples


def plant(folder: Path, *names: str) -> Path:
    """Files in ``folder`` that contain their own names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def look(folder: Path, main: str = "model.onnx") -> Content:
    """The content of ``folder``."""
    return FileSet(folder / main, folder, Bounds(folder.parent)).look()


def companions(file: Path) -> list[str]:
    """The names of the files that belong to ``file``, at the root."""
    return [f.name for f in FileSet(file, None, Bounds(file.parent)).look().files]


@pytest.fixture
def version(tmp_path: Path) -> Path:
    return plant(tmp_path / "1", "model.onnx", ".hidden", "a/b", "a/.c/d")


# -- what is another content ---------------------------------------------------------

CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda f: (f / "a/b").write_text("longer than before"),
    "written in as many bytes": lambda f: (f / "a/b").write_text("b/a"),
    "hidden": lambda f: (f / ".hidden").write_text("x"),
    "added": lambda f: (f / "a/.c/e").touch(),
    "taken away": lambda f: (f / "a/.c/d").unlink(),
    "renamed": lambda f: (f / "a/b").rename(f / "a/c"),
    "exchanged": lambda f: ((f / "a/b").write_text(".hidden"), (f / ".hidden").write_text("a/b")),
    "linked elsewhere": lambda f: ((f / "a/b").unlink(), (f / "a/b").symlink_to("../.hidden")),
    "linked to nothing": lambda f: (f / "a/lock").symlink_to("someone@somewhere"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changed_content_has_another_digest_and_counts_as_changed(
    version: Path, change: Callable[[Path], object]
) -> None:
    before = look(version).read()
    assert before.is_unchanged()
    times = {file: file.stat() for file in version.rglob("*")}
    change(version)
    for file, status in times.items():
        if file.exists():
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not before.is_unchanged()
    after = look(version)
    assert after != before
    assert after.read().digest != before.digest


def test_another_main_file_in_the_same_folder_is_other_content(tmp_path: Path) -> None:
    folder = plant(tmp_path / "1", "model.onnx", "other.onnx")
    assert look(folder).read().digest != look(folder, "other.onnx").read().digest


SAME: dict[str, Callable[[Path], object]] = {
    "written again": lambda f: (f / "a/b").write_text("a/b"),
    "touched": lambda f: os.utime(f / "a/b", ns=(0, 0)),
    "moved away and back": lambda f: ((f / "a").rename(f / ".a"), (f / ".a").rename(f / "a")),
    "replaced as a whole": lambda f: (
        shutil.copytree(f, f.with_name("2")),
        shutil.rmtree(f),
        f.with_name("2").rename(f),
    ),
    "made and taken away": lambda f: ((f / "a/x").touch(), (f / "a/x").unlink()),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME.keys())
def test_rewritten_files_count_as_changed_and_keep_their_digest(
    version: Path, change: Callable[[Path], object]
) -> None:
    before = look(version).read()
    change(version)
    assert not before.is_unchanged()
    assert look(version).read().digest == before.digest


def test_files_that_come_and_go_next_to_the_version_do_not_change_it(version: Path) -> None:
    before = look(version)
    SAME["made and taken away"](version)
    assert look(version) == before


def test_the_same_files_elsewhere_are_the_same_content(version: Path) -> None:
    shutil.copytree(version, version.parent / "2")
    (version.parent / "3").symlink_to("2")
    digests = {look(version.parent / number).read().digest for number in "123"}
    assert len(digests) == 1


def test_a_link_that_moves_does_not_move_the_content_found(version: Path) -> None:
    link = version.parent / "link"
    link.symlink_to("1")
    before = look(link).read()
    plant(version.parent / "2", "model.onnx")
    (moved := version.parent / "next").symlink_to("2")
    moved.replace(link)
    assert before.is_unchanged()
    assert before.main == version / "model.onnx"
    assert look(link) != before


def test_a_file_that_changed_since_it_was_looked_at_is_not_read(version: Path) -> None:
    before = look(version)
    (version / "a/b").write_text("b/a")
    with pytest.raises(OSError, match="it has changed meanwhile"):
        before.read()


# -- what is no content --------------------------------------------------------------


@pytest.mark.parametrize("name", ["pipe", ".pipe", "a/pipe"])
def test_a_pipe_is_named_and_never_opened(version: Path, name: str) -> None:
    os.mkfifo(version / name)
    with pytest.raises(RepositoryError, match=rf"^1/{name}: is not a regular file$"):
        look(version)


def test_a_file_that_became_a_pipe_is_not_waited_for(version: Path) -> None:
    before = look(version)
    (version / "a/b").unlink()
    os.mkfifo(version / "a/b")
    with pytest.raises(OSError, match="it has changed meanwhile"):
        before.read()


def test_a_file_that_has_grown_is_not_read_on(version: Path) -> None:
    before = look(version)
    with (version / "a/b").open("a") as stream:
        stream.write("more")
    with pytest.raises(OSError, match="it has changed meanwhile"):
        before.read()


@pytest.mark.parametrize(("name", "problem"), [("a/b", "1/a/b: has 107374182400 bytes"), ("", "1: has 1026 bytes")])
def test_more_bytes_than_a_version_may_have_are_refused_unread(version: Path, name: str, problem: str) -> None:
    for file in ("x", "y"):
        (version / file).write_bytes(b"x" * 500)
    if name:
        os.truncate(version / name, 100 << 30)  # sparse
    with pytest.raises(RepositoryError, match=rf"^{problem}, more than 1025 \(repository_max_model_bytes\)$"):
        FileSet(version / "model.onnx", version, Bounds(version.parent, max_bytes=1025)).look()


@pytest.mark.parametrize("sparse", ["model.xml", "model.bin"])
def test_the_files_of_a_single_model_are_limited_as_well(tmp_path: Path, sparse: str) -> None:
    plant(tmp_path, "model.xml", "model.bin")
    os.truncate(tmp_path / sparse, 100 << 30)
    with pytest.raises(RepositoryError, match=rf"^{sparse}: has 107374182400 bytes"):
        FileSet(tmp_path / "model.xml", None, Bounds(tmp_path)).look()


def test_folders_linked_in_a_circle_are_read_once(version: Path) -> None:
    (version / "a/up").symlink_to("..")
    (version / "a/here").symlink_to(".")
    assert [f.name for f in look(version).files] == [".hidden", "a/.c/d", "a/b", "model.onnx"]


def test_more_files_than_a_version_may_have_are_refused(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_MOST_FILES", 3)
    with pytest.raises(RepositoryError, match=r"^1: holds more than 3 files$"):
        look(version)


# -- files at the root of the repository ---------------------------------------------


def entry(value: bytes) -> bytes:
    """An ONNX location of a tensor's data, as protobuf writes it."""
    size = bytes([len(value)]) if len(value) < 128 else bytes([len(value) & 127 | 128, len(value) >> 7])
    return b"\x0a\x08location\x12" + size + value


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([b"w"], ["w"]),
        ([b"deep/.w", b"w", b"w"], ["deep/.w", "w"]),
        ([b"./w", b"deep//../w"], ["./w", "deep//../w"]),
        ([b"absent/../w"], ["absent/../w"]),
        ([b"../out", b"/etc/hostname", b"leads-out", b"absent", b"w\0", b"", b"deep"], []),
    ],
)
def test_a_file_at_the_root_owns_what_it_names_below_the_root(
    tmp_path: Path, names: list[bytes], found: list[str]
) -> None:
    root = plant(tmp_path / "root", "w", "deep/.w", "other")
    plant(tmp_path, "out")
    (root / "leads-out").symlink_to("../out")
    (root / "m.onnx").write_bytes(b"".join(map(entry, names)))
    assert companions(root / "m.onnx") == ["m.onnx", *found]


@settings(max_examples=examples(30))
@given(st.integers(1, 64), st.integers(0, 200), st.integers(1, 300))
def test_names_are_found_wherever_a_file_is_cut_for_reading(chunk: int, before: int, length: int) -> None:
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        patch.setattr(contents, "_CHUNK", chunk)
        name = "/".join(["x" * 50] * 6)[:length].strip("/")
        plant(Path(folder), name)
        Path(folder, "m.onnx").write_bytes(b"\x0a\x08locat" + b"-" * before + entry(name.encode()) + b"-" * 10)
        assert companions(Path(folder, "m.onnx")) == ["m.onnx", name]


def test_more_files_than_one_may_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_MOST_FILES", 3)
    (tmp_path / "m.onnx").write_bytes(b"".join(entry(b"w%d" % n) for n in range(4)))
    with pytest.raises(RepositoryError, match=r"^m\.onnx: names more than 3 files$"):
        companions(tmp_path / "m.onnx")
