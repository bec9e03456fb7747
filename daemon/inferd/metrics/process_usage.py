"""What this process uses of the machine."""

import resource
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from inferd.merging import SUM, TOTAL


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """Memory in use, 0 where the kernel does not tell, and CPU time since the start."""

    rss_bytes: int = field(metadata=SUM)
    cpu_seconds: float = field(metadata=TOTAL)

    @classmethod
    def read(cls) -> Self:
        """This process's, as of now."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return cls(rss_bytes=_resident(), cpu_seconds=usage.ru_utime + usage.ru_stime)


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0
