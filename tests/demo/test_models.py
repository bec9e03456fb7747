import shutil
import sys
from pathlib import Path

import pytest

from inferd.config import model
from inferd.demo.models import SOURCES, FetchFailed, Piece, Source, fetch


@pytest.fixture
def repository(tmp_path: Path, demo_repository: Path) -> Path:
    return Path(shutil.copytree(demo_repository, tmp_path / "models"))


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")


@pytest.mark.usefixtures("no_pip")
def test_existing_models_are_not_downloaded_again(repository: Path) -> None:
    steps: list[str] = []

    fetch(repository, steps.append)

    assert steps == []


@pytest.mark.usefixtures("no_pip")
def test_a_damaged_file_is_not_taken_for_the_model(repository: Path) -> None:
    (repository / "magika" / "1" / "model.onnx").write_bytes(b"damaged")

    with pytest.raises(FetchFailed, match=r"magika==1\.0\.3.*/nonexistent/python: No such file"):
        fetch(repository, print)


def test_a_damaged_file_is_replaced_and_the_users_settings_are_kept(repository: Path) -> None:
    onnx, settings = repository / "silero-vad" / "1" / "model.onnx", repository / "silero-vad" / "model.toml"
    intact = onnx.read_bytes()
    onnx.write_bytes(b"damaged")
    settings.write_text("# mine\n")
    steps: list[str] = []

    fetch(repository, steps.append)

    assert onnx.read_bytes() == intact
    assert settings.read_text() == "# mine\n"
    assert steps == ["downloading the wheel silero-vad==6.2.3 for the model silero-vad", f"wrote {onnx}"]


@pytest.mark.parametrize(
    ("piece", "problem"),
    [
        (Piece("silero_vad/nothing.onnx", "x/1/model.onnx", "0" * 64), "it has no silero_vad/nothing.onnx"),
        (Piece("silero_vad/model.py", "x/1/model.onnx", "0" * 64), "model.py is not the file with SHA-256 000"),
    ],
)
def test_a_changed_wheel_is_refused(tmp_path: Path, piece: Piece, problem: str) -> None:
    with pytest.raises(FetchFailed, match=problem):
        fetch(tmp_path, print, [Source("silero-vad==6.2.3", "x", (piece,), "")])

    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("source", SOURCES, ids=lambda s: s.model)
def test_each_models_settings_are_valid(source: Source) -> None:
    model.parse(source.settings, "model.toml")
