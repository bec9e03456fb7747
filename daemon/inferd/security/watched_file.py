"""A value read from files and read again when they change; a change that can't be used has no effect."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from inferd.errors import ConfigurationError

log = structlog.get_logger("inferd.security")

T = TypeVar("T")
# Each file's modification time, size and inode; None if it does not exist.
_State = tuple[tuple[int, int, int] | None, ...]


class WatchedFile(Generic[T]):
    """``value`` is what ``read`` last made of ``files``; ``current`` unless they have changed to something unusable.

    ``kind`` is its name in log lines and metrics; ``readings`` counts the reads after the first, by result.
    """

    def __init__(self, kind: str, files: Sequence[Path], read: Callable[[], T]) -> None:
        """Raises what ``read`` raises."""
        self.kind = kind
        self.current = True
        self.readings = {"ok": 0, "failed": 0}
        self._files = tuple(files)
        self._read = read
        # Before reading: the next look then notices a change made meanwhile.
        self._seen = self._state()
        self.value = read()

    def look(self, *, anyway: bool = False) -> None:
        """Read the files again if they have changed, or ``anyway``."""
        state = self._state()
        if state == self._seen and not anyway:
            return
        self._seen = state
        try:
            self.value = self._read()
        except ConfigurationError as error:
            self.current = False
            self.readings["failed"] += 1
            log.error("credentials not reloaded", kind=self.kind, problem=str(error))
            return
        self.current = True
        self.readings["ok"] += 1
        log.info("credentials reloaded", kind=self.kind)

    def _state(self) -> _State:
        return tuple(map(_state_of, self._files))


def _state_of(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
