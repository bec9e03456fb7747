"""A change of the repository is reported once, and only when it is complete."""

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from inferd.repository.find import Repository
from inferd.repository.watch import Watch


def put(root: Path, name: str, content: str = "x", file: str = "1/model.onnx") -> None:
    path = root / name / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    put(tmp_path, "m")
    watching = Watch(Repository(tmp_path))
    assert not watching.changed()
    assert not watching.changed()
    return watching


def test_a_change_is_reported_once_two_looks_have_seen_it(tmp_path: Path, watch: Watch) -> None:
    put(tmp_path, "n")
    assert [watch.changed() for _ in range(4)] == [False, True, False, False]


def test_a_change_in_progress_is_left_alone(tmp_path: Path, watch: Watch) -> None:
    for size in range(1, 5):
        put(tmp_path, "n", "x" * size)
        assert not watch.changed()
    assert [watch.changed() for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    "change", ["content", "replaced", "untouched", "below", "hidden", "linked", "settings", "version", "gone", "broken"]
)
def test_every_kind_of_change_is_seen(tmp_path: Path, watch: Watch, change: str) -> None:
    match change:
        case "content":
            put(tmp_path, "m", "longer than before")
        case "replaced":
            # As deployments do it: same size, a new file moved over the old one.
            put(tmp_path, "m", "y", "1/.next")
            (tmp_path / "m/1/.next").rename(tmp_path / "m/1/model.onnx")
        case "untouched":
            # With the same size and time stamp.
            before = (file := tmp_path / "m/1/model.onnx").stat()
            file.write_text("y")
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        case "below":
            put(tmp_path, "m", "x", "1/a/b")
        case "hidden":
            put(tmp_path, "m", "x", "1/.b")
        case "linked":
            put(tmp_path, ".store", "x")
            (tmp_path / "m/1/model.onnx").unlink()
            (tmp_path / "m/1").rmdir()
            (tmp_path / "m/1").symlink_to("../.store/1")
        case "settings":
            put(tmp_path, "m", "[batching]\nmax_size = 4\n", "model.toml")
        case "version":
            put(tmp_path, "m", "x", "2/model.onnx")
        case "gone":
            (tmp_path / "m").rename(tmp_path / ".m")
        case "broken":
            put(tmp_path, "m", "no such = key", "model.toml")
    assert [watch.changed() for _ in range(3)] == [False, True, False]


def test_a_change_undone_before_its_report_is_no_change(tmp_path: Path, watch: Watch) -> None:
    (tmp_path / "m").rename(tmp_path / ".m")
    assert not watch.changed()
    (tmp_path / ".m").rename(tmp_path / "m")
    assert [watch.changed() for _ in range(3)] == [False] * 3


def test_an_unreadable_repository_is_logged_once_and_changes_nothing(tmp_path: Path, watch: Watch) -> None:
    away = tmp_path.with_name(tmp_path.name + "-away")
    tmp_path.rename(away)
    with capture_logs() as logged:
        assert [watch.changed() for _ in range(3)] == [False] * 3
    assert [entry["log_level"] for entry in logged] == ["error"]
    away.rename(tmp_path)
    assert [watch.changed() for _ in range(3)] == [False] * 3
