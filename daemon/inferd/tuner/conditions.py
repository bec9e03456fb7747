"""Whether conditions allow tuning: not under memory pressure, CPU contention or CPU quota throttling.

Measurements would then slow clients down and say nothing about the model. Sources:
/proc/pressure/cpu (PSI: per cent of the last ten seconds in which some task waited for a core),
/proc/meminfo, and cpu.stat of the cgroup, whose ``nr_throttled`` counts the periods in which the
quota throttled it.
"""

from dataclasses import dataclass
from pathlib import Path

# Serving at full load on all cores shows 10 to 30 here; above this, other processes compete for the cores.
_MOST_PRESSURE = 60.0
# A candidate needs about as much memory as the model in service; with less left, everyone starts paging.
_LEAST_MEMORY = 0.10
# A few throttled periods are a burst; a quarter of them means that the quota is too small for the load.
_MOST_THROTTLED = 0.25


@dataclass(frozen=True, slots=True)
class Conditions:
    """``pressure`` in per cent, ``memory`` the fraction that is available, ``periods`` and ``throttled``
    of the CPU quota so far; None if the kernel does not report it."""

    pressure: float | None = None
    memory: float | None = None
    periods: int = 0
    throttled: int = 0

    def reason_to_wait(self, before: "Conditions", *, measuring: bool = False) -> str:
        """Why not to tune, "" if nothing speaks against it; ``before`` is an earlier reading.

        While ``measuring``, only memory counts: the measurement itself causes the CPU pressure.
        """
        if self.memory is not None and self.memory < _LEAST_MEMORY:
            return f"{self.memory:.0%} of memory is available, less than {_LEAST_MEMORY:.0%}"
        if measuring:
            return ""
        if self.pressure is not None and self.pressure > _MOST_PRESSURE:
            return f"CPU pressure is {self.pressure:.0f} %, more than {_MOST_PRESSURE:.0f} %"
        periods, throttled = self.periods - before.periods, self.throttled - before.throttled
        if periods > 0 and throttled > _MOST_THROTTLED * periods:
            return f"the CPU quota stopped {throttled} of the last {periods} periods"
        return ""


def read(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Conditions:
    """The present conditions. Never raises: values that can't be read are left out."""
    periods, throttled = _throttling(proc, cgroup)
    return Conditions(_pressure(_read(proc / "pressure" / "cpu")), _memory(_read(proc / "meminfo")), periods, throttled)


def _pressure(text: str) -> float | None:
    """``avg10`` of the ``some`` line."""
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "some":
            for field in rest.split():
                name, _, value = field.partition("=")
                if name == "avg10":
                    return _number(value)
    return None


def _memory(text: str) -> float | None:
    sizes = {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in text.splitlines()) if rest}
    total, available = _number(sizes.get("MemTotal", "")), _number(sizes.get("MemAvailable", ""))
    return available / total if total and available is not None else None


def _throttling(proc: Path, cgroup: Path) -> tuple[int, int]:
    """``nr_periods`` and ``nr_throttled`` of this process's cgroup, version 1 or 2."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        mount = cgroup if controllers == "" else cgroup / "cpu"
        if controllers == "" or "cpu" in controllers.split(","):
            fields = dict(
                part
                for row in _read(mount / path.lstrip("/") / "cpu.stat").splitlines()
                if len(part := row.split()) == 2
            )
            if "nr_periods" in fields:
                return int(_number(fields["nr_periods"]) or 0), int(_number(fields.get("nr_throttled", "")) or 0)
    return 0, 0


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""
