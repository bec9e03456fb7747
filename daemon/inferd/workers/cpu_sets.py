"""Which CPUs each worker gets: disjoint sets of whole cores, within one NUMA node if possible.

Memory is allocated on the node of the thread that first touches it, so a worker that stays on one node has its
weights and tensors close by. Two threads of one core share its caches, so they go to the same worker.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import ceil

from inferd.engine.topology import Cpus, Layout

# With more CPUs than this behind one Python interpreter, the interpreter limits an ordinary model; see the cost model
# in docs/decisions on workers.
CPUS_A_WORKER = 16


def automatic(layout: Layout, threads: int) -> int:
    """The default number of workers, with ``threads`` for CPU inference: enough to keep each at :data:`CPUS_A_WORKER`
    or fewer and within a node; one if that is enough for all threads."""
    if threads <= CPUS_A_WORKER:
        return 1
    return max(min(len(layout.nodes), threads), ceil(threads / CPUS_A_WORKER))


def cpu_sets(layout: Layout, count: int) -> tuple[Cpus, ...]:
    """The CPUs of each of ``count`` workers: disjoint, all of them used, as equal as whole cores allow.

    With at least as many workers as nodes, no worker crosses a node. With more workers than cores, the threads of cores
    are divided; with more workers than CPUs, all workers share all CPUs.
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
    """Ranges of neighbouring cores, which share caches; their sizes differ by one core at most."""
    ends = [len(cores) * i // count for i in range(count + 1)]
    return tuple(frozenset().union(*cores[a:b]) for a, b in pairwise(ends))


def _shares(sizes: Sequence[int], count: int) -> list[int]:
    """How many workers each node gets: at least one, and each further one goes where a worker has the most cores."""
    shares = [1] * len(sizes)
    for _ in range(count - len(sizes)):
        # A node with one core per worker takes no more workers: there are enough cores elsewhere.
        at = max(range(len(sizes)), key=lambda i: (sizes[i] > shares[i], sizes[i] / shares[i], -i))
        shares[at] += 1
    return shares
