"""What this process uses of the machine."""

import resource
from pathlib import Path

from inferd.metrics.snapshot import ProcessUsage


def process_usage() -> ProcessUsage:
    """Memory and CPU time as of now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return ProcessUsage(_resident(), usage.ru_utime + usage.ru_stime)


def _resident() -> int:
    """Bytes of memory in use; 0 where the kernel does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0
