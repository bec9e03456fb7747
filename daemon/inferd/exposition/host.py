"""The kernel's limits of CPU time and memory for this process, and its waits for them.

Read at each scrape, from a dozen small files. What a kernel does not tell, or tells of
groups only, is left out: a zero would be a lie.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from inferd import cgroup
from inferd.metrics import instruments
from inferd.metrics.families import counter, gauge

_RESOURCES = ("cpu", "memory", "io")
# Version 2 and version 1 of the time a group was throttled, with their parts of a second.
_THROTTLED = (("throttled_usec", 10**6), ("throttled_time", 10**9))


class HostCollector(Collector):
    """See the module's text. ``root`` is where /proc and /sys are."""

    def __init__(self, cpu_threads: int, root: Path = Path("/")) -> None:
        self._cpu_threads = cpu_threads
        self._proc, self._groups = root / "proc", root / "sys" / "fs" / "cgroup"

    def collect(self) -> Iterator[Metric]:
        yield gauge(instruments.CPU_THREADS, [((), self._cpu_threads)])
        stat = self._cpu_stat()
        yield counter(instruments.CPU_PERIODS, _one(stat.get("nr_periods")))
        yield counter(instruments.CPU_THROTTLED_PERIODS, _one(stat.get("nr_throttled")))
        seconds = (stat[name] / parts for name, parts in _THROTTLED if name in stat)
        yield counter(instruments.CPU_THROTTLED_SECONDS, _one(next(seconds, None)))
        yield counter(instruments.PRESSURE, self._pressure())
        yield gauge(instruments.MEMORY_LIMIT, _one(cgroup.memory_limit(self._proc, self._groups)))

    def _cpu_stat(self) -> dict[str, int]:
        """cpu.stat of the group whose quota stops this process first: of equal ones, the nearest.

        Without a quota, of the process's own group.
        """
        quotas = cgroup.cpu_quotas(self._proc, self._groups)
        if quotas:
            tightest = min(reversed(quotas), key=lambda quota: quota.cpus)
            return _numbers(cgroup.read(tightest.group / "cpu.stat"))
        for lineage in cgroup.lineages("cpu", self._proc, self._groups):
            stat = _numbers(cgroup.read(own / "cpu.stat")) if (own := lineage.own()) else {}
            # Next to version 1, which then has the quotas, version 2 counts no periods.
            if "nr_periods" in stat:
                return stat
        return {}

    def _pressure(self) -> Iterator[tuple[tuple[str, str], float]]:
        """(resource, kind) and the seconds stalled."""
        group = self._measured()
        for resource in _RESOURCES:
            text = cgroup.read(group / f"{resource}.pressure") if group else ""
            machine = text == ""
            for kind, seconds in _stalled(text or cgroup.read(self._proc / "pressure" / resource)):
                # A machine is never out of all its CPUs: its line is there, at zero, for the sake of old readers.
                if not (machine and (resource, kind) == ("cpu", "full")):
                    yield (resource, kind), seconds

    def _measured(self) -> Path | None:
        """This process's own group of version 2, None where that is the whole machine's."""
        for lineage in cgroup.lineages("cpu", self._proc, self._groups):
            own = lineage.own()
            # The machine's group has no type.
            if lineage.version == 2 and own and cgroup.read(own / "cgroup.type"):
                return own
        return None


class ConnectionCollector(Collector):
    """Connections to the gRPC ``port`` (0 before there is one), and the ``limit`` on them; ``root`` is where /proc is.

    The kernel counts them: gRPC would take the interpreter's lock for seconds where they are many.
    """

    def __init__(self, port: Callable[[], int], limit: int, root: Path = Path("/")) -> None:
        self._port, self._limit = port, limit
        self._tables = [root / "proc" / "self" / "net" / name for name in ("tcp", "tcp6")]

    def collect(self) -> Iterator[Metric]:
        yield gauge(instruments.CONNECTIONS, _one(self._count()))
        yield gauge(instruments.CONNECTIONS_LIMIT, [((), self._limit)])

    def _count(self) -> int | None:
        # The local address, the remote one, and the state 01: established.
        ours = re.compile(rf": [0-9A-F]+:{self._port():04X} [0-9A-F]+:[0-9A-F]+ 01 ")
        tables = [text for table in self._tables if (text := cgroup.read(table))]
        return sum(len(ours.findall(text)) for text in tables) if tables else None


def _one(value: float | None) -> list[tuple[tuple[str, ...], float]]:
    return [] if value is None else [((), value)]


def _numbers(text: str) -> dict[str, int]:
    """Lines of a name and a count; others are passed over."""
    found = {}
    for line in text.splitlines():
        name, _, count = line.partition(" ")
        if (value := cgroup.number(count.strip())) is not None:
            found[name] = value
    return found


def _stalled(text: str) -> Iterator[tuple[str, float]]:
    """The kinds of a pressure file, such as ``some avg10=0.00 avg60=0.00 avg300=0.00 total=1234``, in seconds."""
    for line in text.splitlines():
        kind, *fields = line.split(" ")
        for field in fields:
            name, _, microseconds = field.partition("=")
            if name == "total" and kind in ("some", "full"):
                total = cgroup.number(microseconds)
                if total is not None:
                    yield kind, total / 10**6
