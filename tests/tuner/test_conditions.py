"""When not to tune, from files as the kernel writes them."""

from pathlib import Path

import pytest

from inferd.tuner.conditions import Conditions, read

CALM = Conditions(5.0, 0.5, 100, 0)


def tree(root: Path, *, cgroup: str, stat: str, pressure: str = "", meminfo: str = "") -> tuple[Path, Path]:
    """A /proc and a /sys/fs/cgroup; ``stat`` is the path of cpu.stat below the latter."""
    proc, groups = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "pressure").mkdir()
    (proc / "self" / "cgroup").write_text(cgroup)
    (proc / "pressure" / "cpu").write_text(pressure)
    (proc / "meminfo").write_text(meminfo)
    (groups / stat).parent.mkdir(parents=True)
    (groups / stat).write_text("nr_periods 40\nnr_throttled 7\nthrottled_time 100\n")
    return proc, groups


@pytest.mark.parametrize(
    ("cgroup", "stat"),
    [
        ("0::/daemons/inferd\n", "daemons/inferd/cpu.stat"),
        ("3:memory:/x\n2:cpu,cpuacct:/inferd\n0::/\n", "cpu/inferd/cpu.stat"),
    ],
    ids=["version 2", "version 1"],
)
def test_pressure_memory_and_throttling_are_read(cgroup: str, stat: str, tmp_path: Path) -> None:
    pressure = "some avg10=12.50 avg60=3.00 avg300=1.00 total=5\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    proc, groups = tree(
        tmp_path, cgroup=cgroup, stat=stat, pressure=pressure, meminfo="MemTotal: 200 kB\nMemAvailable: 50 kB\n"
    )
    assert read(proc, groups) == Conditions(12.5, 0.25, 40, 7)


@pytest.mark.parametrize("text", ["", "some", "some avg10=", "\0", "MemTotal: kB\n", "full avg10=1"])
def test_what_the_kernel_does_not_tell_speaks_against_nothing(text: str, tmp_path: Path) -> None:
    proc, groups = tree(tmp_path, cgroup="nonsense", stat="cpu.stat", pressure=text, meminfo=text)
    assert read(proc, groups).reason_to_wait(CALM) == ""
    assert read(tmp_path / "absent", tmp_path / "absent") == Conditions()


def test_this_machine_can_be_read() -> None:
    now = read()
    assert now.memory is not None
    assert 0 < now.memory <= 1


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (Conditions(80.0, 0.5), "CPU pressure is 80 %, more than 60 %"),
        (Conditions(5.0, 0.05), "5% of memory is available, less than 10%"),
        (Conditions(5.0, 0.5, 200, 50), "the CPU quota stopped 50 of the last 100 periods"),
        (Conditions(60.0, 0.1, 200, 25), ""),
        (CALM, ""),
    ],
)
def test_pressure_short_memory_and_a_biting_quota_speak_against_tuning(now: Conditions, said: str) -> None:
    assert now.reason_to_wait(CALM) == said


def test_what_measuring_does_to_the_cores_itself_does_not_speak_against_it() -> None:
    assert Conditions(99.0, 0.5, 200, 100).reason_to_wait(CALM, measuring=True) == ""
    assert "of memory is available" in Conditions(99.0, 0.05).reason_to_wait(CALM, measuring=True)
