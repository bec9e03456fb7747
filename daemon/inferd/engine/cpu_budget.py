"""How many CPU threads this process may keep busy.

OpenVINO honours CPU affinity and not the CFS quota of a cgroup (openvino #37838): in a
container limited to two CPUs of sixty-four it starts sixty-four threads, which the kernel
then stops for most of every period.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

# The kernel's default period, which cpu.max may leave out on writing and always shows on reading.
_DEFAULT_PERIOD = "100000"


@dataclass(frozen=True, slots=True)
class CpuBudget:
    """CPUs this process may run on, its quota in CPUs (None: no quota) and the threads that follow."""

    affinity: int
    quota: float | None
    threads: int


def cpu_budget(
    proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup"), affinity: int | None = None
) -> CpuBudget:
    """The budget of this process: ``threads = max(1, min(affinity, ceil(quota)))``. Raises nothing.

    ``affinity`` is the number of CPUs the process may run on; None asks the system. A
    cgroup file that is absent or malformed sets no quota.
    """
    cpus = _affinity() if affinity is None else affinity
    quota = min(_quotas(proc, cgroup), default=None)
    return CpuBudget(cpus, quota, max(1, cpus if quota is None else min(cpus, ceil(quota))))


def split(threads: int, weights: Mapping[str, float]) -> dict[str, int]:
    """``threads`` divided by ``weights``, each at least 1, as near to what each is due as whole threads allow.

    Where there are more names than threads the parts add up to more than there is: each has one.
    """
    total = sum(weights.values())
    due = {name: threads * weight / total for name, weight in weights.items()}
    parts = dict.fromkeys(weights, 1)
    for _ in range(threads - len(parts)):
        # Whoever lacks most, and then by name, so that the same models always get the same.
        parts[min(due, key=lambda name: (parts[name] - due[name], name))] += 1
    return parts


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(proc: Path, cgroup: Path) -> Iterator[float]:
    """Every quota that binds this process, in CPUs, from cgroup v2 and from v1's cpu controller."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers == "":
            for group in _lineage(cgroup, path):
                yield from _quota(*_read(group / "cpu.max").split())
        elif "cpu" in controllers.split(","):
            # systemd mounts v1 as "cpu,cpuacct" with a link "cpu"; others mount "cpu" alone.
            for mount in {cgroup / "cpu", cgroup / controllers}:
                for group in _lineage(mount, path):
                    yield from _quota(*(_read(group / f"cpu.cfs_{part}_us").strip() for part in ("quota", "period")))


def _lineage(mount: Path, path: str) -> Iterator[Path]:
    """``mount`` and each group down to ``path``.

    All of them count because any ancestor may be the tightest, and because a container
    sees its own group mounted as the root while ``path`` may still be the host's.
    """
    group = mount
    yield group
    for name in path.split("/"):
        # ".." is how a process outside the root of its cgroup namespace is shown.
        if name not in ("", ".", ".."):
            group /= name
            yield group


def _quota(quota: str = "", period: str = _DEFAULT_PERIOD, *_: str) -> Iterator[float]:
    try:
        allowed, per = int(quota), int(period)
        if allowed > 0 and per > 0:
            yield allowed / per
    except (ValueError, OverflowError):
        # "max", an empty or a malformed file: no quota.
        return


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError):
        # ValueError: not text, or a NUL in the path.
        return ""
