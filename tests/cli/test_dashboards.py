"""``inferd dashboards export``: the files written, and that none is replaced without --force."""

from pathlib import Path

import pytest

from inferd.cli.main import main
from tests.conftest import ROOT

EXPORTED = {
    *(f"dashboards/{name}.json" for name in ("fleet", "host", "model")),
    *(f"prometheus/{name}.rules.yml" for name in ("alerts", "recording", "slo")),
    "prometheus/prometheus.yml",
}


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_repository_files_are_written_and_each_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "folder"
    assert main(["dashboards", "export", str(folder)]) == 0
    assert written(folder) == {name: (ROOT / "grafana" / name).read_bytes() for name in EXPORTED}
    assert sorted(capsys.readouterr().out.splitlines()) == [f"wrote      {folder / name}" for name in sorted(EXPORTED)]


def test_a_second_export_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dashboards", "export", str(tmp_path)]) == 0
    before = written(tmp_path)
    capsys.readouterr()
    assert main(["dashboards", "export", str(tmp_path)]) == 0
    assert written(tmp_path) == before
    assert all(line.startswith("unchanged  ") for line in capsys.readouterr().out.splitlines())


def test_a_file_that_differs_stops_the_export_before_it_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "prometheus" / "prometheus.yml"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert main(["dashboards", "export", str(tmp_path)]) == 1
    assert written(tmp_path) == {"prometheus/prometheus.yml": b"mine"}
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == (
        f"inferd: {mine} exists and differs\ninferd: nothing written; --force replaces these files\n"
    )


def test_force_replaces_it_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "prometheus" / "prometheus.yml"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert main(["dashboards", "export", "--force", str(tmp_path)]) == 0
    assert written(tmp_path).keys() == EXPORTED
    assert mine.read_bytes() == (ROOT / "grafana" / "prometheus" / "prometheus.yml").read_bytes()
    assert f"replaced   {mine}" in capsys.readouterr().out.splitlines()


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["dashboards", "export", str(tmp_path / "file")]) == 1
    assert f"inferd: {tmp_path}/file" in capsys.readouterr().err
