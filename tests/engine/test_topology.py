"""Which cores the CPUs of a process belong to, whatever the kernel's tree looks like, and what follows for tuning."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.engine.topology import CpuTopology, Tunables, cpu_topology, tunables

PLAIN = CpuTopology(4, 4, ())
# Two performance cores with two threads each, and four efficient ones.
HYBRID = {
    **{f"system/cpu/cpu{n}/topology/thread_siblings_list": f"{n // 2 * 2}-{n // 2 * 2 + 1}\n" for n in range(4)},
    **{f"system/cpu/cpu{n}/topology/thread_siblings_list": f"{n}\n" for n in range(4, 8)},
    "cpu_core/cpus": "0-3\n",
    "cpu_atom/cpus": "4-7\n",
}


def tree(root: Path, files: Mapping[str, str]) -> Path:
    """A /sys/devices with ``files``."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    return root


def siblings(*cores: str) -> dict[str, str]:
    """Files that say that CPU n belongs to the core ``cores[n]``."""
    return {f"system/cpu/cpu{n}/topology/thread_siblings_list": f"{core}\n" for n, core in enumerate(cores)}


def test_cpus_of_a_core_each_have_no_hyper_threading(tmp_path: Path) -> None:
    found = cpu_topology(tree(tmp_path, siblings("0", "1", "2", "3")), range(4))
    assert found == CpuTopology(logical=4, cores=4, core_types=())
    assert not found.shares_cores


# As an Intel and as an AMD server number them.
@pytest.mark.parametrize("cores", [("0,2", "1,3", "0,2", "1,3"), ("0-1", "0-1", "2-3", "2-3")])
def test_cpus_that_share_cores_are_hyper_threaded(cores: tuple[str, ...], tmp_path: Path) -> None:
    found = cpu_topology(tree(tmp_path, siblings(*cores)), range(4))
    assert found == CpuTopology(logical=4, cores=2, core_types=())
    assert found.shares_cores


def test_a_process_that_has_one_cpu_of_each_core_has_no_hyper_threading(tmp_path: Path) -> None:
    found = cpu_topology(tree(tmp_path, siblings("0,2", "1,3", "0,2", "1,3")), {0, 1})
    assert found == CpuTopology(logical=2, cores=2, core_types=())
    assert not found.shares_cores


def test_both_kinds_of_cores_are_told_and_only_some_have_two_cpus(tmp_path: Path) -> None:
    found = cpu_topology(tree(tmp_path, HYBRID), range(8))
    assert found == CpuTopology(logical=8, cores=6, core_types=("performance", "efficient"))


@pytest.mark.parametrize("cpus", [range(4), range(4, 8)])
def test_a_process_that_has_cores_of_one_kind_has_no_choice(cpus: range, tmp_path: Path) -> None:
    assert cpu_topology(tree(tmp_path, HYBRID), cpus).core_types == ()


def test_a_cpu_of_which_nothing_is_told_counts_as_a_core(tmp_path: Path) -> None:
    assert cpu_topology(tmp_path, {0, 5, 7}) == CpuTopology(logical=3, cores=3, core_types=())


def test_the_cpus_of_this_process_are_the_ones_looked_at() -> None:
    found = cpu_topology()
    assert found.logical == len(os.sched_getaffinity(0))
    assert 1 <= found.cores <= found.logical


@given(st.text(max_size=20), st.text(max_size=20) | st.just("3-1") | st.just("0-" + "9" * 6))
def test_malformed_files_never_raise(core: str, kind: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        files = siblings(core, "0") | {"cpu_core/cpus": kind, "cpu_atom/cpus": core}
        found = cpu_topology(tree(Path(root), files), range(2))
    assert found.logical == 2
    assert 1 <= found.cores <= 2


# -- what can be tuned ---------------------------------------------------------------


def test_on_a_cpu_all_there_is_can_be_tuned() -> None:
    topology = CpuTopology(8, 6, ("performance", "efficient"))
    assert tunables("CPU", (1, 8), 8, topology) == Tunables(
        (1, 8),
        8,
        {
            "pinning": (True, False),
            "hyper_threading": (True, False),
            "core_type": ("any", "performance", "efficient"),
        },
    )


def test_what_a_cpu_does_not_have_is_not_tuned() -> None:
    assert tunables("CPU", (1, 4), 4, PLAIN) == Tunables((1, 4), 4, choices={"pinning": (True, False)})


@given(low=st.integers(0, 4), high=st.integers(0, 512), budget=st.integers(1, 512))
def test_streams_stay_within_the_thread_budget(low: int, high: int, budget: int) -> None:
    found = tunables("CPU", (low, high), budget, PLAIN)
    assert found.threads == budget
    assert found.streams[0] <= found.streams[1] <= budget
    assert found.streams[1] == max(1, min(high, budget))


def test_a_cpu_that_tells_no_range_may_have_a_stream_for_each_thread() -> None:
    assert tunables("CPU", None, 3, PLAIN).streams == (1, 3)


def test_a_gpu_has_streams_alone() -> None:
    assert tunables("GPU", (1, 2), 8, CpuTopology(8, 4, ())) == Tunables(streams=(1, 2))


@pytest.mark.parametrize("family", ["NPU", "AUTO", "HETERO", "MULTI"])
def test_other_devices_have_nothing_to_tune(family: str) -> None:
    nothing = Tunables(streams=(1, 1), threads=1, choices={})
    assert tunables(family, (1, 4), 8, CpuTopology(8, 4, ())) == nothing
    assert tunables("GPU", None, 8, PLAIN) == nothing
