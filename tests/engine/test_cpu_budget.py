"""The CPU budget follows affinity and the tightest cgroup quota, whatever the tree looks like."""

import os
import tempfile
from collections.abc import Mapping
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.engine.cpu_budget import CpuBudget, cpu_budget, split


def budget(root: Path, membership: str, files: Mapping[str, str], affinity: int = 64) -> CpuBudget:
    """The budget seen in a machine whose /proc/self/cgroup says ``membership``."""
    proc, cgroup = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(membership)
    for name, text in files.items():
        (cgroup / name).parent.mkdir(parents=True, exist_ok=True)
        (cgroup / name).write_text(text)
    return cpu_budget(proc, cgroup, affinity)


def test_a_v2_quota_is_rounded_up(tmp_path: Path) -> None:
    found = budget(tmp_path, "0::/app\n", {"app/cpu.max": "250000 100000\n"})
    assert found == CpuBudget(affinity=64, quota=2.5, threads=3)


def test_max_is_no_quota(tmp_path: Path) -> None:
    assert budget(tmp_path, "0::/app\n", {"app/cpu.max": "max 100000\n"}) == CpuBudget(64, None, 64)


def test_the_tightest_ancestor_binds(tmp_path: Path) -> None:
    files = {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000", "a/b/c/cpu.max": "800000 100000"}
    assert budget(tmp_path, "0::/a/b/c\n", files).threads == 2


def test_a_group_next_to_the_path_does_not_count(tmp_path: Path) -> None:
    assert budget(tmp_path, "0::/a\n", {"a/cpu.max": "max 100000", "b/cpu.max": "100000 100000"}).threads == 64


def test_a_container_whose_path_is_the_hosts_finds_its_quota_at_the_root(tmp_path: Path) -> None:
    assert budget(tmp_path, "0::/system.slice/docker-0af.scope\n", {"cpu.max": "300000 100000"}).threads == 3


def test_a_path_outside_the_namespace_stays_inside_the_mount(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000")
    assert budget(tmp_path, "0::/../..\n", {"cpu.max": "400000 100000"}).quota == 4


@pytest.mark.parametrize(
    ("controllers", "mount"), [("cpu", "cpu"), ("cpu,cpuacct", "cpu,cpuacct"), ("cpuacct,cpu", "cpu")]
)
def test_a_v1_quota_is_found_under_the_cpu_controllers_mount(tmp_path: Path, controllers: str, mount: str) -> None:
    files = {f"{mount}/job/cpu.cfs_quota_us": "150000\n", f"{mount}/job/cpu.cfs_period_us": "50000\n"}
    assert budget(tmp_path, f"7:cpuset:/\n4:{controllers}:/job\n", files).quota == 3


def test_a_v1_quota_of_minus_one_is_none(tmp_path: Path) -> None:
    files = {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert budget(tmp_path, "4:cpu:/\n", files).quota is None


def test_under_both_versions_the_tighter_one_binds(tmp_path: Path) -> None:
    files = {"cpu/cpu.cfs_quota_us": "500000", "cpu/cpu.cfs_period_us": "100000", "cpu.max": "200000 100000"}
    assert budget(tmp_path, "4:cpu:/\n0::/\n", files).quota == 2


def test_without_any_files_only_affinity_counts(tmp_path: Path) -> None:
    assert cpu_budget(tmp_path / "proc", tmp_path / "cgroup", 8) == CpuBudget(8, None, 8)


def test_affinity_is_asked_of_the_system(tmp_path: Path) -> None:
    assert cpu_budget(tmp_path, tmp_path).affinity == len(os.sched_getaffinity(0))


@given(
    affinity=st.integers(1, 512),
    quotas=st.lists(st.one_of(st.none(), st.tuples(st.integers(1, 10**8), st.integers(1, 10**6))), max_size=5),
)
def test_threads_are_the_tightest_of_affinity_and_every_quota(
    affinity: int, quotas: list[tuple[int, int] | None]
) -> None:
    path, files = "", {}
    for level, quota in enumerate(quotas):
        path += f"/g{level}"
        files[f"{path[1:]}/cpu.max"] = f"{quota[0]} {quota[1]}\n" if quota else "max 100000\n"
    with tempfile.TemporaryDirectory() as root:
        found = budget(Path(root), f"0::{path or '/'}\n", files, affinity)
    bounds = [affinity, *(ceil(q[0] / q[1]) for q in quotas if q)]
    assert found.threads == min(bounds)
    assert found.affinity == affinity


@given(membership=st.text(max_size=60), text=st.text(max_size=40) | st.integers().map(lambda n: f"{n} {'9' * 400}"))
def test_malformed_files_never_raise_and_never_raise_the_budget(membership: str, text: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        proc, cgroup = Path(root, "proc"), Path(root, "cgroup")
        (proc / "self").mkdir(parents=True)
        cgroup.mkdir()
        for file, content in ((proc / "self" / "cgroup", f"0::/\n{membership}"), (cgroup / "cpu.max", text)):
            file.write_text(content, encoding="utf-8", errors="surrogatepass")
        found = cpu_budget(proc, cgroup, 4)
    assert 1 <= found.threads <= 4


# -- parts of it -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("threads", "weights", "parts"),
    [
        (8, {"a": 1, "b": 1}, {"a": 4, "b": 4}),
        (8, {"a": 3, "b": 1}, {"a": 6, "b": 2}),
        (4, {"a": 1, "b": 1, "c": 1}, {"a": 2, "b": 1, "c": 1}),
        (2, {"a": 100, "b": 1}, {"a": 1, "b": 1}),
        (1, {"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}),
        (5, {"a": 1}, {"a": 5}),
    ],
)
def test_threads_are_split_by_weight_and_none_is_left_without(
    threads: int, weights: dict[str, float], parts: dict[str, int]
) -> None:
    assert split(threads, weights) == parts


@given(st.integers(1, 256), st.dictionaries(st.text(max_size=3), st.floats(0.001, 1000), min_size=1, max_size=12))
def test_parts_add_up_to_what_there_is_where_there_is_enough(threads: int, weights: dict[str, float]) -> None:
    parts = split(threads, weights)
    assert set(parts) == set(weights)
    assert min(parts.values()) >= 1
    assert sum(parts.values()) == max(threads, len(weights))
