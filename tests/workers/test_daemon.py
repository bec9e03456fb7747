"""The settings of each worker: its part of the machine, and the daemon's settings otherwise."""

import os
from pathlib import Path

import pytest

from inferd.config import daemon
from inferd.config.daemon import Settings
from inferd.errors import ConfigurationError
from inferd.workers.daemon import worker_count, worker_specs

ARGV = ("serve", "--model-repository", "models", "--workers", "3")


def settings(**given: object) -> Settings:
    return daemon.load(flag_values={"model_repository": Path("models"), **given})


def option(command: tuple[str, ...], flag: str) -> str:
    """What counts of ``flag``: as it was given last."""
    at = len(command) - 1 - command[::-1].index(flag)
    return command[at + 1]


def test_each_has_its_own_part_and_the_rest_of_the_command_line(tmp_path: Path) -> None:
    made = worker_specs(settings(), ARGV, 3, "127.0.0.1:8001", tmp_path, 3000)
    assert [spec.identity.index for spec in made] == [0, 1, 2]
    assert len({spec.identity.secret for spec in made}) == 1
    for spec in made:
        assert spec.command[3:][: len(ARGV) + 1] == ("inferd", *ARGV)
        assert option(spec.command, "--workers") == "1"
        assert option(spec.command, "--grpc-bind") == "127.0.0.1:8001"
        assert option(spec.command, "--preflight-memory-bytes") == "1000"
        assert "--reuse-port" in spec.command
        assert spec.cpus <= os.sched_getaffinity(0)
    # Those who don't tune serve by what the first finds.
    assert ["--tuning" in spec.command for spec in made] == [False, True, True]


def test_all_have_the_same_number_of_threads_so_that_profiles_hold_for_all(tmp_path: Path) -> None:
    for threads in (1, 2, 1000):
        made = worker_specs(settings(cpu_threads=threads), ARGV, 2, "127.0.0.1:8001", tmp_path, 1)
        given = {int(option(spec.command, "--cpu-threads")) for spec in made}
        assert len(given) == 1
        assert 1 <= given.pop() <= min(len(spec.cpus) for spec in made)


def test_a_number_is_what_is_wanted_and_auto_is_one_on_a_small_machine() -> None:
    assert worker_count(settings(workers=7)) == 7
    assert worker_count(settings(workers="auto", cpu_threads=1)) == 1
    assert settings().workers == 1


@pytest.mark.parametrize("wrong", [0, "0", -1, 513, "many", 1.5])
def test_no_other_number_is_taken(wrong: object) -> None:
    with pytest.raises(ConfigurationError, match="workers"):
        settings(workers=wrong)
