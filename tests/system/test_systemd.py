"""The units under a real systemd: a Debian is booted, inferd installed into it, and put through its days."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferd.systemd import units
from tests import models
from tests.certificates import CertificateAuthority
from tests.system import debian_tree, systemd_scenario
from tests.system.echo_models import serial, steps

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parent.parent.parent
EXPOSURE_BAR = 2.0

Facts = dict[str, Any]


def needed(problem: str) -> None:
    """Skip where the machine lacks something; CI has to have all of it."""
    if problem and os.environ.get("CI"):
        pytest.fail(problem)
    if problem:
        pytest.skip(problem)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """What was seen in each step of the scenario."""
    needed(debian_tree.missing())
    folder = tmp_path_factory.mktemp("systemd")
    wheel, out, repository = folder / "wheel", folder / "out", folder / "models"
    out.mkdir()
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", wheel, ROOT], check=True)
    models.save(models.identity(models.DType.INT64, [-1]), repository, "echo")
    models.save(steps(), repository, "busy", settings=serial(16))
    shutil.copytree(repository / "echo", repository / "worse" / "echo")
    authority = CertificateAuthority(folder / "authority")
    pair = authority.issue("inferd", "DNS:localhost")
    shown = {
        wheel: "/wheel",
        repository: "/models",
        authority.certificate: "/certificates/ca.pem",
        pair.certificate: "/certificates/cert.pem",
        pair.key: "/certificates/key.pem",
    }
    debian_tree.boot(Path(systemd_scenario.__file__), shown, out)
    seen = out / "facts.json"
    assert seen.exists(), debian_tree.said(out)
    return dict(json.loads(seen.read_text()))


def step(facts: Facts, name: str) -> Facts:
    seen = facts[name]
    assert "raised" not in seen, f"{seen.get('raised')}\n{seen.get('journal')}"
    return dict(seen)


def answered(value: int, name: str = "x") -> Callable[[str], bool]:
    def holds(text: str) -> bool:
        return bool(json.loads(text) == {name: [value]})

    return holds


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units in a folder, with a program that there is on any machine."""
    for name in units.UNITS:
        (tmp_path / name).write_text(units.unit(name, "/bin/true", "Written by a test."))
    return tmp_path


@pytest.mark.parametrize("name", ["inferd.service", "inferd@node0.service"])
def test_systemd_has_nothing_to_say_against_the_units(installed: Path, name: str) -> None:
    needed("" if shutil.which("systemd-analyze") else "there is no systemd-analyze here")
    done = subprocess.run(
        ["systemd-analyze", "verify", installed / name],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["inferd.service", "inferd@.service"])
def test_the_units_leave_little_exposed(installed: Path, name: str, figure: Callable[[str], None]) -> None:
    needed("" if shutil.which("systemd-analyze") else "there is no systemd-analyze here")
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", installed / name]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert found, said
    figure(f"{name}: exposure {found[1]} (bar {EXPOSURE_BAR})")
    assert float(found[1]) <= EXPOSURE_BAR


def test_the_wheel_installs_its_own_units(facts: Facts) -> None:
    seen = step(facts, "install")
    assert seen["pip"]["status"] == 0, seen["pip"]["said"]
    assert seen["units"]["status"] == 0, seen["units"]["said"]
    assert [v["said"] for v in seen["verified"]] == ["", ""]
    assert "\nINFERD_MODEL_REPOSITORY=/srv/inferd/models\n" in seen["example"]


def test_starting_returns_when_models_are_served(facts: Facts) -> None:
    seen = step(facts, "start")
    assert seen["started"]["status"] == 0, seen["started"]["said"]
    assert seen["shown"]["ActiveState"] == "active"
    assert seen["shown"]["StatusText"] == "serving 2 of 2 models"
    assert answered(7)(seen["answer"])


def test_openvino_and_the_metrics_work_under_the_hardening(facts: Facts) -> None:
    seen = step(facts, "start")
    assert seen["cache"], "nothing was written to the cache directory"
    names = {line.split()[0] for line in seen["process"]}
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"} <= names


def test_a_key_among_the_credentials_is_served_with(facts: Facts) -> None:
    seen = step(facts, "secure")
    assert seen["started"]["status"] == 0, seen["started"]["said"]
    assert seen["certificate"]["subjectAltName"] == [["DNS", "localhost"]]
    assert seen["stopped"]["status"] == 0


def test_a_reload_serves_what_is_new_in_the_same_process(facts: Facts) -> None:
    seen = step(facts, "reload")
    assert seen["reloaded"]["status"] == 0, seen["reloaded"]["said"]
    assert seen["after"]["StatusText"] == "serving 3 of 3 models"
    assert seen["after"]["MainPID"] == seen["before"]["MainPID"]
    assert answered(7)(seen["answer"])


def test_a_killed_daemon_is_started_again(facts: Facts) -> None:
    seen = step(facts, "kill")
    assert seen["after"]["ActiveState"] == "active"
    assert int(seen["after"]["NRestarts"]) == int(seen["before"]["NRestarts"]) + 1
    assert answered(7)(seen["answer"])


def test_a_hung_daemon_is_ended_and_started_again(facts: Facts, figure: Callable[[str], None]) -> None:
    seen = step(facts, "hang")
    assert "Watchdog timeout" in seen["journal"]
    assert seen["after"]["ActiveState"] == "active"
    assert int(seen["after"]["NRestarts"]) == int(seen["before"]["NRestarts"]) + 1
    assert answered(7)(seen["answer"])
    figure(f"hung daemon: serving again after {seen['seconds']:.1f} s with WatchdogSec=4")


def test_stopping_answers_what_was_accepted(facts: Facts) -> None:
    seen = step(facts, "stop")
    assert json.loads(seen["answer"]) == {"taken": systemd_scenario.STEPS}
    assert seen["stopped"]["status"] == 0
    assert (seen["shown"]["ActiveState"], seen["shown"]["Result"]) == ("inactive", "success")
    assert seen["shown"]["ExecMainStatus"] == "0"


def test_a_setting_that_cannot_be_used_is_not_tried_again(facts: Facts) -> None:
    seen = step(facts, "misconfigure")
    assert seen["started"]["status"] != 0
    assert (seen["shown"]["ActiveState"], seen["shown"]["ExecMainStatus"]) == ("failed", "78")
    assert seen["shown"]["NRestarts"] == "0"
    assert "INFERD_GRPC_BIND" in seen["journal"]


def test_a_roll_over_fails_no_request_of_a_client_that_retries(facts: Facts, figure: Callable[[str], None]) -> None:
    seen = step(facts, "roll_over")
    assert seen["over"]["status"] == 0, seen["over"]["said"]
    codes = json.loads(seen["answered"])
    figure(f"roll-over under systemd: {codes} in {seen['over']['seconds']} s")
    assert set(codes) == {"OK"}
    assert seen["states"]["blue"]["ActiveState"] == "inactive"
    assert seen["states"]["green"]["ActiveState"] == "active"


def test_the_next_boot_starts_the_instance_that_took_over(facts: Facts) -> None:
    states = step(facts, "roll_over")["states"]
    assert (states["blue"]["UnitFileState"], states["green"]["UnitFileState"]) == ("disabled", "enabled")


def test_an_instance_that_serves_fewer_models_does_not_take_over(facts: Facts) -> None:
    seen = step(facts, "roll_over")
    assert seen["worse"]["status"] == 1
    assert "fewer models" in seen["worse"]["said"]
    assert seen["after"]["green"]["ActiveState"] == "active"
    assert seen["after"]["blue"]["ActiveState"] == "inactive"
