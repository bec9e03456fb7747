"""Control groups are found in both versions, and the tightest limit on the way up applies.

What quotas do to the number of threads is in engine/test_cpu_budget.py.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.cgroup import CpuQuota, Lineage, cpu_quotas, lineages, memory_limit, number
from tests.cgroups import machine

NO_LIMIT_V1 = "9223372036854771712\n"


def limit(root: Path, membership: str, files: Mapping[str, str]) -> int | None:
    proc, cgroup = machine(root, membership, files)
    return memory_limit(proc, cgroup)


def test_the_memory_limit_is_the_tightest_on_the_way_up(tmp_path: Path) -> None:
    files = {"a/memory.max": "4096\n", "a/b/memory.max": "max\n", "a/b/c/memory.max": "8192\n", "d/memory.max": "1\n"}
    assert limit(tmp_path, "0::/a/b/c\n", files) == 4096


def test_without_a_memory_limit_there_is_none(tmp_path: Path) -> None:
    assert limit(tmp_path, "0::/a\n", {"a/memory.max": "max\n"}) is None


def test_version_one_has_its_memory_limit_under_the_controllers_mount(tmp_path: Path) -> None:
    files = {"memory/memory.limit_in_bytes": NO_LIMIT_V1, "memory/a/memory.limit_in_bytes": "1048576\n"}
    assert limit(tmp_path, "4:memory:/a\n1:cpu:/b\n", files) == 1048576


def test_the_largest_number_of_pages_means_no_limit(tmp_path: Path) -> None:
    assert limit(tmp_path, "4:memory:/\n", {"memory/memory.limit_in_bytes": NO_LIMIT_V1}) is None


def test_a_container_whose_path_is_the_hosts_is_limited_at_the_root(tmp_path: Path) -> None:
    assert limit(tmp_path, "0::/system.slice/docker-0af.scope\n", {"memory.max": "65536\n"}) == 65536


def test_quotas_name_their_groups_outermost_first(tmp_path: Path) -> None:
    files = {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n", "a/b/c/cpu.max": "50000"}
    proc, cgroup = machine(tmp_path, "0::/a/b/c\n", files)
    assert cpu_quotas(proc, cgroup) == (CpuQuota(cgroup / "a", 2), CpuQuota(cgroup / "a" / "b" / "c", 0.5))


def test_version_two_is_looked_for_in_its_own_folder_next_to_version_one(tmp_path: Path) -> None:
    files = {"unified/cgroup.controllers": "", "unified/a/cgroup.procs": "", "cpu/b/tasks": ""}
    proc, cgroup = machine(tmp_path, "1:cpu:/b\n0::/a\n", files)
    unified = cgroup / "unified"
    assert list(lineages("cpu", proc, cgroup)) == [
        Lineage(1, (cgroup / "cpu", cgroup / "cpu" / "b")),
        Lineage(2, (unified, unified / "a")),
    ]


def test_a_group_called_unified_is_an_ordinary_group(tmp_path: Path) -> None:
    files = {"cgroup.controllers": "cpu\n", "unified/cgroup.controllers": "cpu\n", "unified/memory.max": "1\n"}
    assert limit(tmp_path, "0::/\n", files) is None


def test_the_own_group_is_the_last_that_exists(tmp_path: Path) -> None:
    proc, cgroup = machine(tmp_path, "0::/a/b\n", {"a/cgroup.procs": ""})
    [lineage] = lineages("cpu", proc, cgroup)
    assert lineage.own() == cgroup / "a"
    assert Lineage(2, (tmp_path / "nowhere",)).own() is None


@given(st.integers(0, 2**64 - 1))
def test_a_count_is_read(count: int) -> None:
    assert number(str(count)) == count


@pytest.mark.parametrize("text", ["", "max", "-1", "1.5", "0x10", "1 2", "१", "9" * 400])
def test_any_other_text_is_not_a_count(text: str) -> None:
    assert number(text) is None


@given(membership=st.text(max_size=60), text=st.text(max_size=40))
def test_malformed_files_never_raise(membership: str, text: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        proc, cgroup = machine(Path(root), f"0::/\n{membership}", {"memory.max": text, "cpu.max": text})
        found = memory_limit(proc, cgroup)
    assert found is None or found == int(text.strip())
