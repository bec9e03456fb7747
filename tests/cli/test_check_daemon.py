"""Settings that would keep a daemon from starting are errors, and harmless ones are warnings or nothing."""

import socket
from pathlib import Path
from typing import Any

import pytest

from inferd.cli.check_daemon import problems, warnings
from inferd.config.daemon import Settings


def settings(root: Path, **more: Any) -> Settings:
    given = {"model_repository": root, "cache_dir": root / "cache", "profile_dir": root / "profiles"} | more
    return Settings(**({"grpc_bind": "127.0.0.1:0", "metrics_bind": "127.0.0.1:0"} | given))


def wrong(root: Path, **more: Any) -> list[str]:
    return [f"{problem.source}: {problem.problem}" for problem in problems(settings(root, **more))]


def test_a_servable_configuration_has_no_problems(tmp_path: Path) -> None:
    (tmp_path / "echo.onnx").touch()
    assert wrong(tmp_path) == []
    assert list(warnings(settings(tmp_path))) == []


def test_a_port_in_use_is_not_a_problem(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert wrong(tmp_path, grpc_bind=f"127.0.0.1:{taken.getsockname()[1]}") == []


@pytest.mark.parametrize("metrics", ["127.0.0.1:8001", "0.0.0.0:8001"])
def test_one_port_can_not_serve_both(tmp_path: Path, metrics: str) -> None:
    assert wrong(tmp_path, grpc_bind="127.0.0.1:8001", metrics_bind=metrics) == [
        "metrics_bind: has port 8001, the same as grpc_bind"
    ]


def test_all_problems_are_reported(tmp_path: Path) -> None:
    found = wrong(
        tmp_path,
        grpc_bind="192.0.2.1:8001",
        metrics_bind="nowhere.invalid:8002",
        tokens_file=str(tmp_path / "absent.toml"),
    )
    assert [one.split(":")[0] for one in found] == [str(tmp_path / "absent.toml"), "grpc_bind", "metrics_bind"]


def test_workers_need_a_folder_for_their_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    assert wrong(tmp_path) == []
    [said] = wrong(tmp_path, workers=2)
    assert said.startswith("variable TMPDIR: the path of sockets in ")


def test_the_daemons_warnings_at_start_are_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERD_QUEUE_MAX_LENGHT", "3")
    (tmp_path / "file").touch()
    (tmp_path / "echo.onnx").touch()
    opened = {"grpc_bind": "0.0.0.0:8001", "allow_insecure_bind": True}
    said = list(warnings(settings(tmp_path, cache_dir=tmp_path / "file" / "cache", **opened)))
    assert [one.split(":")[0] for one in said] == [
        "INFERD_QUEUE_MAX_LENGHT",
        "grpc_bind",
        "grpc_bind",
        "cache_dir",
    ]


def test_an_unknown_variable_is_a_warning_with_the_likely_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "echo.onnx").touch()
    monkeypatch.setenv("INFERD_QUEUE_MAX_LENGHT", "3")
    monkeypatch.setenv("INFERD_SERVICE_HOST", "10.0.0.1")
    assert list(warnings(settings(tmp_path))) == [
        "INFERD_QUEUE_MAX_LENGHT: unknown environment variable (did you mean INFERD_QUEUE_MAX_LENGTH?)",
        "INFERD_SERVICE_HOST: unknown environment variable",
    ]


def test_a_repository_without_models_is_a_warning(tmp_path: Path) -> None:
    assert list(warnings(settings(tmp_path))) == [
        f"model_repository: {tmp_path} holds no models; expected: REPOSITORY/MODEL/VERSION/model.onnx, such as "
        f"{tmp_path}/MODEL/1/model.onnx"
    ]
