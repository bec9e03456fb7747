"""The CPUs of this process, and what can be tuned on a device."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from inferd.axes import DEVICE_CHOICES, Value

# The kernel's names for the two event sources of a hybrid Intel CPU, each of which lists its CPUs.
_KINDS = {"performance": "cpu_core", "efficient": "cpu_atom"}


Cpus = frozenset[int]


@dataclass(frozen=True, slots=True)
class Layout:
    """The usable CPUs: per NUMA node its cores, each with its CPUs (hardware threads)."""

    nodes: tuple[tuple[Cpus, ...], ...]

    @classmethod
    def of(cls, nodes: Mapping[int, Sequence[Cpus]]) -> "Layout":
        """Nodes ordered by number, cores by their first CPU; nodes without cores are left out."""
        return cls(tuple(tuple(sorted(nodes[number], key=min)) for number in sorted(nodes) if nodes[number]))

    @property
    def cpus(self) -> Cpus:
        return frozenset(cpu for node in self.nodes for core in node for cpu in core)


@dataclass(frozen=True, slots=True)
class CpuTopology:
    """The logical CPUs a process may use, their cores, and the kinds of cores on a hybrid CPU."""

    logical: int
    cores: int
    core_types: tuple[str, ...]

    @property
    def shares_cores(self) -> bool:
        """Whether any two of the CPUs share a core."""
        return self.logical > self.cores


@dataclass(frozen=True, slots=True)
class Tunables:
    """What may be tuned on a device.

    ``streams`` are the minimum and maximum; ``threads`` is the most that all streams together may have, where 1 also
    means that the device has no thread setting. ``choices`` are the values of each axis that offers a choice, the
    device's default first.
    """

    streams: tuple[int, int] = (1, 1)
    threads: int = 1
    choices: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)


def cpu_topology(devices: Path = Path("/sys/devices"), cpus: Iterable[int] | None = None) -> CpuTopology:
    """The topology of ``cpus`` (None: those this process may run on), read below ``devices``. Never raises.

    A CPU without topology information counts as a core, as in many virtual machines.
    """
    usable = set(_affinity() if cpus is None else cpus)
    cores = {
        _read(devices / "system" / "cpu" / f"cpu{n}" / "topology" / "thread_siblings_list") or str(n) for n in usable
    }
    present = tuple(kind for kind, source in _KINDS.items() if usable & _numbers(_read(devices / source / "cpus")))
    return CpuTopology(len(usable), len(cores), present if len(present) > 1 else ())


def cpu_layout(devices: Path = Path("/sys/devices"), cpus: Iterable[int] | None = None) -> Layout:
    """The NUMA nodes and cores of ``cpus`` (None: those this process may run on), read below ``devices``.

    CPUs without a node count as a node of their own. Never raises.
    """
    usable = frozenset(_affinity() if cpus is None else cpus)
    left, nodes = set(usable), {}
    for folder in sorted((devices / "system" / "node").glob("node[0-9]*")):
        found = frozenset(_numbers(_read(folder / "cpulist"))) & left
        left -= found
        nodes[int(folder.name.removeprefix("node"))] = _cores(devices, found)
    nodes[-1] = _cores(devices, frozenset(left))
    return Layout.of(nodes)


def tunables(family: str, streams: tuple[int, int] | None, cpu_threads: int, topology: CpuTopology) -> Tunables:
    """What can be tuned on a device of ``family`` that offers ``streams`` (None if unknown).

    A GPU has streams only, and an NPU nothing, by their documentation. OpenVINO may still ignore some of the CPU's
    axes, such as hyper-threading and core types on CPUs not from Intel: a compiled model's ``Effective`` has the
    settings in force.
    """
    if family == "CPU":
        low, high = streams or (1, cpu_threads)
        most = max(1, min(high, cpu_threads))
        offered = {n: axis.offered(topology) for n, axis in DEVICE_CHOICES.items() if family in axis.families}
        return Tunables((min(low, most), most), cpu_threads, {n: values for n, values in offered.items() if values})
    if family == "GPU" and streams is not None:
        return Tunables(streams)
    return Tunables()


def _cores(devices: Path, cpus: frozenset[int]) -> list[frozenset[int]]:
    siblings = {
        n: _numbers(_read(devices / "system" / "cpu" / f"cpu{n}" / "topology" / "thread_siblings_list")) for n in cpus
    }
    return list({frozenset(siblings[n] & cpus) | {n} for n in cpus})


def _affinity() -> Iterable[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _numbers(listed: str) -> set[int]:
    """The CPUs in a kernel list, such as ``0-3,8``."""
    found: set[int] = set()
    for part in listed.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found |= set(range(int(first), int(last or first) + 1))
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):
        return ""
