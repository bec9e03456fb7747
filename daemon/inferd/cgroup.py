"""The control groups of this process, and their limits.

Version 1, version 2, or both side by side. A file that is absent, forbidden or malformed
counts as no limit; nothing here raises.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# The kernel's default period, which cpu.max may leave out on writing and always shows on reading.
_DEFAULT_PERIOD = "100000"

# Version 1 has no word for "no limit": it shows the largest number of whole pages, just below 2**63.
_NO_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class Lineage:
    """This process's group in one hierarchy, after all its ancestors: the mount comes first.

    All of them count because any ancestor may be the tightest, and because a container
    sees its own group mounted as the root while the path may still be the host's: the
    groups further down do not exist then.
    """

    version: Literal[1, 2]
    groups: tuple[Path, ...]

    def own(self) -> Path | None:
        """The process's own group: the last of them that exists."""
        return next((group for group in reversed(self.groups) if os.path.isdir(group)), None)


@dataclass(frozen=True, slots=True)
class CpuQuota:
    """CPUs that everything below ``group`` may keep busy together."""

    group: Path
    cpus: float


def lineages(controller: str, proc: Path, mount: Path) -> Iterator[Lineage]:
    """The groups in which ``controller``, such as ``cpu``, may be set for this process; the caller looks for the files.

    ``proc`` is /proc and ``mount`` is /sys/fs/cgroup, or stands for them.
    """
    for line in read(proc / "self" / "cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers == "":
            yield Lineage(2, tuple(_down(_unified(mount), path)))
        elif controller in controllers.split(","):
            # systemd mounts version 1 as "cpu,cpuacct" with a link "cpu"; others mount "cpu" alone.
            alone = mount / controller
            yield Lineage(1, tuple(_down(alone if os.path.isdir(alone) else mount / controllers, path)))


def cpu_quotas(proc: Path, mount: Path) -> tuple[CpuQuota, ...]:
    """Every quota that binds this process; within a hierarchy its own comes last."""
    found = []
    for lineage in lineages("cpu", proc, mount):
        for group in lineage.groups:
            if lineage.version == 2:
                cpus = _cpus(*read(group / "cpu.max").split())
            else:
                cpus = _cpus(*(read(group / f"cpu.cfs_{part}_us").strip() for part in ("quota", "period")))
            if cpus:
                found.append(CpuQuota(group, cpus))
    return tuple(found)


def memory_limit(proc: Path, mount: Path) -> int | None:
    """Bytes that this process's group may use: the tightest limit on it and its ancestors; None without one."""
    names = {1: "memory.limit_in_bytes", 2: "memory.max"}
    limits = (
        number(read(group / names[lineage.version]).strip())
        for lineage in lineages("memory", proc, mount)
        for group in lineage.groups
    )
    return min((limit for limit in limits if limit is not None and limit < _NO_LIMIT), default=None)


def memory(proc: Path = Path("/proc"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may use: its group's limit, or without one what the machine has."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine, memory_limit(proc, mount) or machine)


def number(text: str) -> int | None:
    """A count as the kernel writes it; None for anything else, such as ``max`` or ``-1``."""
    # 64 bits have at most twenty digits.
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 20 else None


def read(file: Path) -> str:
    """The text of ``file``, "" if it can't be read."""
    try:
        return file.read_text()
    except (OSError, ValueError):
        # ValueError: not text, or a NUL in the path.
        return ""


def _cpus(quota: str = "", period: str = _DEFAULT_PERIOD, *_: str) -> float | None:
    allowed, per = number(quota), number(period)
    return allowed / per if allowed and per else None


def _unified(mount: Path) -> Path:
    """The mount of version 2: next to version 1 it has a folder of its own.

    A group may be called "unified" too, but then there is a group around it.
    """
    own = mount / "unified"
    if os.path.isfile(own / "cgroup.controllers") and not os.path.isfile(mount / "cgroup.controllers"):
        return own
    return mount


def _down(mount: Path, path: str) -> Iterator[Path]:
    """``mount`` and each group down to ``path``."""
    group = mount
    yield group
    for name in path.split("/"):
        # ".." in a path means that the process is outside the root of its cgroup namespace.
        if name not in ("", ".", ".."):
            group /= name
            yield group
