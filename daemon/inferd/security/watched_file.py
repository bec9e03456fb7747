"""Something read from files that is read again when they change; what can't be used changes nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from inferd.errors import ConfigurationError

log = structlog.get_logger("inferd.security")

T = TypeVar("T")
# Of each file: when it was changed, how large it is, and which it is; None where it is not there.
_State = tuple[tuple[int, int, int] | None, ...]


class WatchedFile(Generic[T]):
    """``value`` is what ``read`` made of ``files`` last; ``current`` unless they have changed to what can't be used.

    ``kind`` is what log lines and metrics call it; ``readings`` counts those after the first, by result.
    """

    def __init__(self, kind: str, files: Sequence[Path], read: Callable[[], T]) -> None:
        """Raises what ``read`` raises."""
        self.kind = kind
        self.current = True
        self.readings = {"ok": 0, "failed": 0}
        self._files = tuple(files)
        self._read = read
        # Before reading: a change meanwhile is then seen by the next look.
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
            log.error("new credentials can't be used; those from before hold", kind=self.kind, problem=str(error))
            return
        self.current = True
        self.readings["ok"] += 1
        log.info("new credentials are in use", kind=self.kind)

    def _state(self) -> _State:
        return tuple(map(_state_of, self._files))


def _state_of(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
