"""How many CPU threads this process may keep busy.

OpenVINO honours CPU affinity but not the CFS quota of a cgroup (openvino #37838): in a container
limited to two of sixty-four CPUs it starts sixty-four threads, which the kernel throttles for most
of every period.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from inferd.cgroup import cpu_quotas
from inferd.config.daemon import Settings


@dataclass(frozen=True, slots=True)
class CpuBudget:
    """The CPUs this process may run on, its quota in CPUs (None: no quota), and the resulting number of threads."""

    affinity: int
    quota: float | None
    threads: int


def cpu_budget(
    proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup"), affinity: int | None = None
) -> CpuBudget:
    """The budget of this process: ``threads = max(1, min(affinity, ceil(quota)))``. Never raises.

    ``affinity`` is the number of CPUs the process may run on; None asks the system. A
    cgroup file that is absent or malformed sets no quota.
    """
    cpus = _affinity() if affinity is None else affinity
    quota = min((quota.cpus for quota in cpu_quotas(proc, cgroup)), default=None)
    return CpuBudget(cpus, quota, max(1, cpus if quota is None else min(cpus, ceil(quota))))


def cpu_threads(settings: Settings) -> int:
    """How many threads CPU inference gets: never more than the budget."""
    budget = cpu_budget().threads
    return min(settings.cpu_threads or budget, budget)


def split(threads: int, weights: Mapping[str, float]) -> dict[str, int]:
    """``threads`` divided in proportion to ``weights``, as closely as whole threads allow, each part at least 1.

    With more names than threads, each gets one, and the parts exceed ``threads``.
    """
    total = sum(weights.values())
    due = {name: threads * weight / total for name, weight in weights.items()}
    parts = dict.fromkeys(weights, 1)
    for _ in range(threads - len(parts)):
        # The model furthest below its share; ties by name, so that the result is deterministic.
        parts[min(due, key=lambda name: (parts[name] - due[name], name))] += 1
    return parts


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
