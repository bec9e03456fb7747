"""How much memory a process has resident, as Linux says."""

import os
import re
from pathlib import Path


class Growth:
    """What process ``pid`` has grown by since this was made. Raises OSError where there is no /proc."""

    def __init__(self, pid: int) -> None:
        self._folder = Path("/proc", str(pid))
        # Makes the peak what is resident now.
        (self._folder / "clear_refs").write_text("5" + os.linesep)
        self._start = self._kib("VmRSS") << 10

    @property
    def peak(self) -> int:
        """Bytes, at the most there ever was."""
        return (self._kib("VmHWM") << 10) - self._start

    @property
    def now(self) -> int:
        """Bytes at present."""
        return self.resident - self._start

    @property
    def resident(self) -> int:
        """Bytes resident at present, with those at the start."""
        return self._kib("VmRSS") << 10

    @property
    def most(self) -> int:
        """Bytes resident at the most, with those at the start."""
        return self._kib("VmHWM") << 10

    def _kib(self, name: str) -> int:
        found = re.search(rf"^{name}:\s*(\d+) kB$", (self._folder / "status").read_text(), re.MULTILINE)
        if found is None:
            raise OSError(f"{self._folder} says nothing about {name}")
        return int(found[1])
