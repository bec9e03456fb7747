"""The command as a shell sees it: what it prints, and where; and how it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inferd import __version__
from inferd.config.daemon import CONFIG_VARIABLE, ENV_PREFIX, Settings
from inferd.tensors import DType
from tests import models
from tests.system.daemon import Daemon
from tests.system.test_disclosure import spoil

pytestmark = pytest.mark.system

COMMANDS = ("serve", "check")


def inferd(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    return subprocess.run(
        [sys.executable, "-m", "inferd", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env=inherited | {"COLUMNS": "200"} | environment,
    )


def ended(done: "subprocess.CompletedProcess[str]") -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    models.save(models.identity(DType.INT64, [-1]), tmp_path, "echo")
    return tmp_path


def test_version_is_one_line() -> None:
    assert ended(inferd("--version")) == (0, f"inferd {__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_full_help_names_every_setting_with_its_variable(command: str) -> None:
    done = inferd(command, "--help-all")
    assert (done.returncode, done.stderr) == (0, "")
    words = done.stdout.replace(",", " ").split()
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in words
        assert f"{ENV_PREFIX}{name.upper()}]" in words
    assert f"{CONFIG_VARIABLE}]" in words


def test_help_names_the_commands() -> None:
    done = inferd("--help")
    assert done.returncode == 0
    assert all(f"  {command} " in done.stdout for command in COMMANDS)


def test_an_empty_repository_and_an_unknown_variable_are_said(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    flags = (
        "--model-repository",
        str(tmp_path / "models"),
        "--cache-dir",
        str(tmp_path),
        "--profile-dir",
        str(tmp_path),
    )
    code, out, err = ended(inferd("check", *flags, INFERD_LOG_LEVLE="debug"))
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "warning INFERD_LOG_LEVLE: unknown environment variable (did you mean INFERD_LOG_LEVEL?)",
        f"warning model_repository: {tmp_path}/models holds no models; expected: REPOSITORY/MODEL/VERSION/model.onnx, "
        f"such as {tmp_path}/models/MODEL/1/model.onnx",
        "0 models, 0 broken",
    ]


def test_serve_logs_what_check_warns_of(tmp_path: Path) -> None:
    root = tmp_path / "echo"
    models.save(models.identity(DType.INT64, [-1]), tmp_path, "echo")
    with Daemon(root, environment={"INFERD_LOG_LEVLE": "debug"}) as daemon:
        (unknown,) = daemon.events("unknown environment variable")
        (odd,) = daemon.events("unexpected model repository")
    assert (unknown["variable"], unknown["hint"]) == ("INFERD_LOG_LEVLE", "did you mean INFERD_LOG_LEVEL?")
    assert odd["path"] == str(root)
    assert "looks like the folder of one model" in odd["problem"]
    assert odd["problem"].endswith(f"such as {root}/1/model.onnx")


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ((), "inferd"),
        (("serv",), "inferd"),
        (("serve", "--modle", "x"), "inferd serve"),
        (("check", "extra"), "inferd check"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_a_usage_error(arguments: tuple[str, ...], command: str) -> None:
    code, out, err = ended(inferd(*arguments))
    assert (code, out) == (2, "")
    assert err.startswith("usage: inferd")
    assert f"\n{command}: error: " in err


def test_check_describes_a_good_repository(repository: Path, tmp_path: Path) -> None:
    assert ended(inferd("check", "--model-repository", str(repository), "--cache-dir", str(tmp_path / "cache"))) == (
        0,
        "ok      echo: version 1 on CPU\n"
        "        no latency objective, goal throughput\n"
        "        version 1 input: x INT64 [?]\n"
        "        version 1 output: x INT64 [?]\n"
        "1 model, 0 broken\n",
        "",
    )


def test_check_ends_with_1_when_a_model_is_broken(repository: Path) -> None:
    (repository / "echo" / "model.toml").write_text("[execution]\nprecision = 'f8'")
    code, out, err = ended(inferd("check", "--model-repository", str(repository)))
    assert (code, err) == (1, "")
    assert out == (
        "broken  echo: echo/model.toml: execution.precision: got 'f8'; allowed: 'auto', 'f32', 'bf16' or 'f16'\n"
        "1 model, 1 broken\n"
    )


def test_check_ends_with_3_when_there_is_no_repository(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert ended(inferd("check", "--model-repository", str(absent))) == (
        3,
        "",
        f"inferd: {absent}: can't be read: No such file or directory\n",
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_setting_that_can_not_be_used_is_one_sentence_and_78(command: str, repository: Path) -> None:
    flags = ("--model-repository", str(repository), "--cpu-threads", "many")
    code, out, err = ended(inferd(command, *flags))
    assert (code, out) == (78, "")
    assert err == "inferd: flag --cpu-threads: cpu_threads: got 'many'; allowed: a whole number of 0..4096\n"


BAD_SETTINGS: dict[str, tuple[str, ...]] = {
    "open port": ("--grpc-bind", "0.0.0.0:0"),
    "certificate alone": ("--tls-cert", "x.pem"),
    "absent certificate": ("--tls-cert", "/absent.pem", "--tls-key", "/absent.key"),
    "absent tokens": ("--tokens-file", "/absent.toml"),
    "address of another machine": ("--grpc-bind", "192.0.2.1:8001", "--allow-insecure-bind"),
    "metrics address of another machine": ("--metrics-bind", "192.0.2.1:8002", "--allow-insecure-bind"),
    "no name": ("--metrics-bind", "nowhere.invalid:8002", "--allow-insecure-bind"),
    "workers": ("--workers", "0"),
    "collector": ("--trace-endpoint", "collector:4317"),
}


@pytest.mark.parametrize("flags", BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_what_serve_refuses_check_refuses_with_the_same_words(flags: tuple[str, ...], repository: Path) -> None:
    ports = [f for bind in ("--grpc-bind", "--metrics-bind") if bind not in flags for f in (bind, "127.0.0.1:0")]
    served, checked = (
        inferd(command, "--model-repository", str(repository), *ports, *flags) for command in ("serve", "check")
    )
    assert (served.returncode, checked.returncode) == (78, 78)
    said = [line for line in served.stderr.splitlines() if line.startswith("inferd: ")]
    assert said
    ours = checked.stderr.splitlines()
    assert all(line.startswith("inferd: ") for line in ours)
    # What the system says of an address differs with the call that finds it out.
    assert [line.partition(": can't listen")[0].split(":")[1] for line in ours][: len(said)] == [
        line.partition(": can't listen")[0].split(":")[1] for line in said
    ]


def test_all_mistakes_in_settings_are_said_at_once(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "inferd.toml"
    file.write_text(f'model_repository = "{repository}"\nnonsense = 1\nqueue_max_length = -1\n')
    for command in COMMANDS:
        code, _, err = ended(inferd(command, "--config", str(file), INFERD_LOG_LEVEL="loud"))
        assert code == 78
        assert [line.split(": ")[2] for line in err.splitlines()] == ["queue_max_length", "log_level", "nonsense"]


def test_check_finds_every_model_broken_that_serve_does(tmp_path: Path) -> None:
    root = tmp_path / "models"
    spoil(root)
    models.save(models.identity(DType.INT64, [-1]), root, "echo")
    models.save(models.identity(DType.INT64, [-1]), root, "warm", settings="[warmup.shapes]\nz = [1]\n")
    flags = ("--preflight", "off", "--cache-max-bytes", "0")
    with Daemon(root, *flags) as daemon:
        lines = daemon.get("/readyz")[1].splitlines()[1:]
    unready = {line.split()[0] for line in lines}
    code, out, _ = ended(inferd("check", "--model-repository", str(root), *flags))
    assert code == 1
    told = [line.split(maxsplit=2) for line in out.splitlines() if line.startswith(("ok ", "broken "))]
    assert {name.rstrip(":") for what, name, *_ in told if what == "broken"} == unready
    assert {name.rstrip(":") for what, name, *_ in told if what == "ok"} == {"echo"}


def test_check_leaves_nothing_behind_and_can_be_quick(repository: Path, tmp_path: Path) -> None:
    models.save(models.identity(DType.INT64, [-1]), repository, "property", settings='[properties]\nNO_SUCH = "1"\n')
    flags = ("--model-repository", str(repository), "--cache-dir", str(tmp_path / "cache"), "--preflight", "off")
    assert inferd("check", *flags).returncode == 1
    assert inferd("check", "--quick", *flags).returncode == 0
    assert not (tmp_path / "cache").exists()


def test_a_setting_may_come_from_a_variable_and_the_sentence_says_so(repository: Path) -> None:
    code, _, err = ended(inferd("check", INFERD_MODEL_REPOSITORY=str(repository), INFERD_LOG_LEVEL="loud"))
    assert code == 78
    assert err.startswith("inferd: variable INFERD_LOG_LEVEL: log_level: got 'loud'; allowed: ")


def test_a_setting_may_come_from_the_file_a_variable_names(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "inferd.toml"
    file.write_text(f'model_repository = "{repository}"\n')
    assert inferd("check", INFERD_CONFIG=str(file)).returncode == 0
    file.write_text(f'model_repository = "{repository}"\nnonsense = 1\n')
    code, _, err = ended(inferd("check", INFERD_CONFIG=str(file)))
    assert code == 78
    assert err.startswith(f"inferd: {file}: nonsense: unknown key; allowed: model_repository, ")


def test_a_file_of_settings_that_is_not_there_is_one_sentence_and_78(tmp_path: Path) -> None:
    absent = tmp_path / "absent.toml"
    assert ended(inferd("serve", "--config", str(absent))) == (78, "", f"inferd: {absent}: No such file or directory\n")
