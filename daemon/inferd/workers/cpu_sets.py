"""Which CPUs each worker gets: disjoint, whole cores, within one NUMA node where that can be.

A worker's memory is where its threads first touch it, so that one that stays on a node has its weights and its tensors
near. Two threads of one core share what makes them fast, so they go to the same worker.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil

from inferd.engine.topology import Cpus, Layout

# With so many CPUs behind one interpreter it is the interpreter that an ordinary model waits for; see
# docs/decisions on workers for the model of the costs.
CPUS_A_WORKER = 16


def automatic(layout: Layout, threads: int) -> int:
    """How many workers to have where it is left to us, with ``threads`` for CPU inference: as many as keep each at
    :data:`CPUS_A_WORKER` or fewer, and within a node; one where that is enough for all."""
    if threads <= CPUS_A_WORKER:
        return 1
    return max(min(len(layout.nodes), threads), ceil(threads / CPUS_A_WORKER))


def cpu_sets(layout: Layout, count: int) -> tuple[Cpus, ...]:
    """The CPUs of each of ``count`` workers: disjoint, all of them handed out, as equal as whole cores allow.

    No worker crosses a node where there are as many workers as nodes. Where there are fewer cores than workers a core's
    threads are divided, and where there are fewer CPUs than workers all share all.
    """
    cores = [core for node in layout.nodes for core in node]
    if len(layout.cpus) < count:
        return (layout.cpus,) * count
    if len(cores) < count:
        return _deal([frozenset({cpu}) for core in cores for cpu in sorted(core)], count)
    if count < len(layout.nodes):
        return _deal(cores, count)
    shares = _shares([len(node) for node in layout.nodes], count)
    return tuple(cpus for node, share in zip(layout.nodes, shares, strict=True) for cpus in _deal(node, share))


def _deal(cores: Sequence[Cpus], count: int) -> tuple[Cpus, ...]:
    """Runs of neighbours, which share caches, that differ by one core at most."""
    ends = [len(cores) * i // count for i in range(count + 1)]
    return tuple(frozenset().union(*cores[a:b]) for a, b in pairwise(ends))


def _shares(sizes: Sequence[int], count: int) -> list[int]:
    """How many workers go to each node: one at least, each further one where the most cores a worker are."""
    shares = [1] * len(sizes)
    for _ in range(count - len(sizes)):
        # Where a worker has one core already there is no room for another: there are enough cores elsewhere.
        at = max(range(len(sizes)), key=lambda i: (sizes[i] > shares[i], sizes[i] / shares[i], -i))
        shares[at] += 1
    return shares
