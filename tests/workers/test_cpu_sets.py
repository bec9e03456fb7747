"""Workers get disjoint CPUs, whole cores and, where possible, one NUMA node; from synthetic trees."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferd.engine.topology import Layout, cpu_layout
from inferd.workers.cpu_sets import CPUS_A_WORKER, automatic, cpu_sets


def tree(root: Path, nodes: dict[int, str], siblings: dict[int, str]) -> Path:
    """/sys/devices of a machine: the CPUs of each node, and those that share a core with each."""
    for number, cpus in nodes.items():
        folder = root / "system" / "node" / f"node{number}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{cpus}\n")
    for cpu, listed in siblings.items():
        folder = root / "system" / "cpu" / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{listed}\n")
    return root


def machine(nodes: int, cores: int, threads: int = 1) -> Layout:
    """As Linux numbers it: the first thread of every core, and then the second of each."""
    total = nodes * cores
    return Layout.of(
        {
            node: [
                frozenset(node * cores + core + thread * total for thread in range(threads)) for core in range(cores)
            ]
            for node in range(nodes)
        }
    )


def test_two_sockets_with_two_threads_a_core_are_read_as_they_are(tmp_path: Path) -> None:
    siblings = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
    layout = cpu_layout(tree(tmp_path, {0: "0-1,4-5", 1: "2-3,6-7"}, siblings), range(8))
    assert layout == machine(2, 2, 2)
    assert cpu_sets(layout, 2) == (frozenset({0, 1, 4, 5}), frozenset({2, 3, 6, 7}))
    assert cpu_sets(layout, 4) == tuple(frozenset({cpu, cpu + 4}) for cpu in range(4))


def test_only_cpus_that_may_be_used_are_handed_out(tmp_path: Path) -> None:
    siblings = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
    layout = cpu_layout(tree(tmp_path, {0: "0-1,4-5", 1: "2-3,6-7"}, siblings), {1, 2, 6})
    assert layout.nodes == ((frozenset({1}),), (frozenset({2, 6}),))


def test_a_node_of_memory_alone_gets_no_worker(tmp_path: Path) -> None:
    layout = cpu_layout(tree(tmp_path, {0: "0-3", 2: ""}, {}), range(4))
    assert layout == machine(1, 4)


def test_where_the_kernel_tells_nothing_each_cpu_is_a_core(tmp_path: Path) -> None:
    assert cpu_layout(tmp_path, range(3)) == machine(1, 3)


def test_nodes_are_numbers_not_words(tmp_path: Path) -> None:
    nodes = {number: str(number) for number in (0, 2, 10)}
    assert cpu_layout(tree(tmp_path, nodes, {}), (0, 2, 10)).nodes == tuple((frozenset({n}),) for n in (0, 2, 10))


def test_a_larger_node_gets_more_workers() -> None:
    layout = Layout.of({0: [frozenset({cpu}) for cpu in range(12)], 1: [frozenset({cpu}) for cpu in range(12, 16)]})
    assert [len(cpus) for cpus in cpu_sets(layout, 4)] == [4, 4, 4, 4]


def test_fewer_workers_than_nodes_share_them_out_in_runs() -> None:
    assert cpu_sets(machine(4, 2), 2) == (frozenset(range(4)), frozenset(range(4, 8)))


def test_more_workers_than_cores_divide_the_threads_of_a_core() -> None:
    assert cpu_sets(machine(1, 2, 2), 4) == tuple(frozenset({cpu}) for cpu in (0, 2, 1, 3))


def test_more_workers_than_cpus_share_all() -> None:
    assert cpu_sets(machine(1, 2), 3) == (frozenset({0, 1}),) * 3


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 2), st.integers(1, 40))
def test_sets_are_disjoint_fair_and_within_a_node(cores: list[int], threads: int, count: int) -> None:
    total = iter(range(1000))
    layout = Layout.of(
        {n: [frozenset(next(total) for _ in range(threads)) for _ in range(size)] for n, size in enumerate(cores)}
    )
    sets = cpu_sets(layout, count)
    assert len(sets) == count
    if count > len(layout.cpus):
        return
    assert sum(map(len, sets)) == len(layout.cpus)
    assert frozenset().union(*sets) == layout.cpus
    assert all(sets)
    if count <= sum(cores):
        assert all(core <= one or not core & one for one in sets for node in layout.nodes for core in node)
    if len(cores) <= count <= sum(cores):
        nodes = [frozenset().union(*node) for node in layout.nodes]
        assert all(any(one <= node for node in nodes) for one in sets)
    if len(cores) == 1 and count <= sum(cores):
        assert max(map(len, sets)) - min(map(len, sets)) <= threads


@pytest.mark.parametrize(
    ("layout", "threads", "count"),
    [
        (machine(1, 2), 2, 1),
        (machine(2, 8), CPUS_A_WORKER, 1),
        (machine(1, 64), CPUS_A_WORKER, 1),  # of a container that may use so much CPU time
        (machine(1, 64), 64, 4),
        (machine(2, 24, 2), 96, 6),
        (machine(8, 3), 24, 8),
        (machine(1, 17), 17, 2),
    ],
)
def test_left_to_us_there_are_as_many_as_an_interpreter_each_can_feed(layout: Layout, threads: int, count: int) -> None:
    assert automatic(layout, threads) == count
