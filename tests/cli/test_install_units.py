"""``inferd install-units``: the files written, and the files kept."""

import sys
from pathlib import Path

import pytest

from inferd.cli.main import main


@pytest.fixture
def installed_at(monkeypatch: pytest.MonkeyPatch) -> str:
    """The path that inferd believes it is installed at."""
    monkeypatch.setattr(sys, "executable", "/opt/somewhere/bin/python")
    return "/opt/somewhere/bin/inferd"


def test_the_units_run_the_command_that_wrote_them(installed_at: str, tmp_path: Path) -> None:
    assert main(["install-units", "--to", f"{tmp_path}/units", "--settings-to", f"{tmp_path}/settings"]) == 0
    for name in ("inferd.service", "inferd@.service"):
        assert f"ExecStart={installed_at} serve\n" in (tmp_path / "units" / name).read_text()
    assert "INFERD_MODEL_REPOSITORY=" in (tmp_path / "settings" / "inferd.env").read_text()


@pytest.mark.usefixtures("installed_at")
def test_existing_settings_are_kept(tmp_path: Path) -> None:
    (tmp_path / "inferd.env").write_text("mine")
    assert main(["install-units", "--to", str(tmp_path), "--settings-to", str(tmp_path)]) == 0
    assert (tmp_path / "inferd.env").read_text() == "mine"


def test_an_installation_that_the_units_hide_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/home/me/venv/bin/python")
    assert main(["install-units", "--to", str(tmp_path), "--settings-to", str(tmp_path)]) == 1
    assert "hide /home" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("installed_at")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["install-units", "--to", f"{tmp_path}/file", "--settings-to", str(tmp_path)]) == 1
    assert f"{tmp_path}/file" in capsys.readouterr().err
