"""The daemon tunes models without a profile, serves by an existing one, and follows its CPU budget."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.engine import models as small
from tests.system.daemon import Daemon
from tests.system.gauges import gauge_of

pytestmark = pytest.mark.system


def repository(folder: Path) -> Path:
    # Of no fixed shape, or it would run inline and leave nothing to tune.
    models.save(small.scaled(2, [-1, 64]), folder / "repository", "m")
    return folder / "repository"


def flags(folder: Path, tuning: str = "off") -> list[str]:
    places = ["--cache-dir", str(folder / "cache"), "--profile-dir", str(folder / "profiles")]
    return [*places, "--tuning", tuning, "--tuning-budget", "2"]


def inferd(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """``inferd tune`` with ``arguments``."""
    command = [sys.executable, "-m", "inferd", "tune", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def offline(folder: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    return inferd("run", "--model-repository", str(folder / "repository"), *flags(folder), *more)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a repository, and the profile that ``inferd tune run`` has left."""
    folder = tmp_path_factory.mktemp("tuned")
    repository(folder)
    done = offline(folder, "--plot", str(folder / "plots"))
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "said").write_text(done.stdout)
    return folder


def profile(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "profiles" / "m" / "1.CPU.json").read_text())  # type: ignore[no-any-return]


def test_offline_tuning_stores_a_readable_profile_and_draws_it(tuned: Path) -> None:
    found = profile(tuned)
    assert (found["model"], found["version"], found["device"], found["pinned"]) == ("m", 1, "CPU", False)
    assert {"model", "openvino", "device", "driver", "CPU threads", "precision", "shapes"} <= set(found["key"])
    assert found["winner"] in [point["candidate"] for point in found["points"]]
    assert "<svg" in (tuned / "plots" / "m-1.svg").read_text()


def test_without_an_objective_throughput_is_chosen_by_and_nothing_is_said_of_keeping_one(tuned: Path) -> None:
    found, said = profile(tuned), (tuned / "said").read_text()
    assert found["reason"].startswith("no objective: chosen by throughput, regardless of latency; ")
    assert (found["objective"], found["out_of_reach"]) == (None, False)
    assert found["reason"] in said
    assert "keeps the objective" not in said
    assert "in time" not in said


def test_a_model_that_is_not_there_is_named(tuned: Path) -> None:
    done = offline(tuned, "nosuch")
    assert (done.returncode, done.stderr) == (3, "inferd: unknown model 'nosuch'\n")


def test_the_daemon_is_ready_by_a_stored_profile_without_searching(tuned: Path) -> None:
    winner = profile(tuned)["winner"]
    with Daemon(tuned / "repository", *flags(tuned, "start")) as daemon:
        [ready] = daemon.events("model ready")
        assert (ready["streams"], ready["threads"], ready["infer_requests"]) == (
            winner["streams"],
            winner["threads"],
            winner["requests"],
        )
        assert gauge_of(daemon, "inferd_infer_requests", model="m", device="CPU") == winner["requests"]
        assert daemon.stop() == 0, daemon.log()
    assert daemon.events("tuning started") == []


def taskset() -> list[str]:
    """A command that leaves its own the first of this process's CPUs."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2 or not shutil.which("taskset"):
        pytest.skip("needs two CPUs and taskset")
    return ["taskset", "--cpu-list", str(cpus[0])]


def test_a_profile_for_another_cpu_budget_is_not_used(tuned: Path) -> None:
    with Daemon(tuned / "repository", *flags(tuned), under=taskset()) as daemon:
        [line] = daemon.events("profile ignored: conditions differ")
        assert line["differs"].startswith("CPU threads: ")
        assert gauge_of(daemon, "inferd_threads", model="m", device="CPU") == 1


def test_a_profile_for_another_model_is_not_used(tuned: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tuned, tmp_path / "copy")
    weights = folder / "repository" / "m" / "1" / "model.bin"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(data)
    with Daemon(folder / "repository", *flags(folder)) as daemon:
        [line] = daemon.events("profile ignored: conditions differ")
        assert line["differs"].startswith("model: ")


@contextmanager
def half_a_machine() -> Iterator[list[str]]:
    """A command that puts its own under a quota of one CPU, in a control group made for it."""
    controller = Path("/sys/fs/cgroup/cpu")
    group = (controller if controller.is_dir() else Path("/sys/fs/cgroup")) / f"inferd-test-{os.getpid()}"
    try:
        group.mkdir()
        if controller.is_dir():
            (group / "cpu.cfs_quota_us").write_text("100000")
        else:
            (group.parent / "cgroup.subtree_control").write_text("+cpu")
            (group / "cpu.max").write_text("100000 100000")
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no control group with a CPU quota can be made here: {error.strerror}")
    try:
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        group.rmdir()


def test_threads_follow_a_cpu_quota_below_the_affinity(tuned: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPUs")
    with half_a_machine() as under:
        with Daemon(tuned / "repository", *flags(tuned), under=under) as daemon:
            assert gauge_of(daemon, "inferd_threads", model="m", device="CPU") == 1
            assert gauge_of(daemon, "inferd_streams", model="m", device="CPU") == 1
        assert daemon.stop() == 0


def test_a_model_without_a_profile_is_tuned_while_serving(tmp_path: Path, figure: Callable[[str], None]) -> None:
    models_at = repository(tmp_path)
    with Daemon(models_at, *flags(tmp_path, "start"), "--tuner-control") as daemon:
        server = ["--server", daemon.grpc]
        assert "m 1 on CPU: " in inferd("status", *server).stdout
        # Put off for as long as other tests press on the CPU.
        ended = daemon.wait_for("tuned", timeout=300)
        assert ended["decision"] in ("promoted", "kept", "worse")
        figure(f"tuning while serving: {ended['decision']}: {ended['why']}")
        explained = inferd("explain", "m", *server)
        assert explained.returncode == 0, explained.stderr
        assert "the best first" not in explained.stdout
        assert "candidate" in explained.stdout
        assert json.loads(inferd("export", "m", *server).stdout) == profile(tmp_path)
        assert inferd("pin", "m", *server).stdout == "pinned\n"
        assert profile(tmp_path)["pinned"] is True
        assert inferd("rollback", "m", *server).stdout.startswith("rolled back to ")
        assert inferd("unpin", "m", *server).stdout == "no longer pinned\n"
        assert gauge_of(daemon, "inferd_tuning_decisions_total", model="m", decision=ended["decision"]) == 1
        missing = inferd("explain", "nosuch", *server)
        assert (missing.returncode, missing.stderr) == (1, "inferd: NOT_FOUND: unknown model 'nosuch'\n")


def test_steering_is_denied_without_tuner_control(tuned: Path) -> None:
    with Daemon(tuned / "repository", *flags(tuned)) as daemon:
        denied = inferd("pin", "m", "--server", daemon.grpc)
        assert denied.returncode == 1
        assert denied.stderr == "inferd: PERMISSION_DENIED: Pin is not allowed; start the server with --tuner-control\n"
        assert inferd("status", "--server", daemon.grpc).returncode == 0
