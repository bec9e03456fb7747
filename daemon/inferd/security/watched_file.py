"""A value read from files and read again when they change; a change that can't be used has no effect."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from inferd.errors import ConfigurationError
from inferd.patience import SECONDS, limited, mark

log = structlog.get_logger("inferd.security")

T = TypeVar("T")
# Each file's modification time, size and inode; None if it does not exist.
_State = tuple[tuple[int, int, int] | None, ...]


class WatchedFile(Generic[T]):
    """``value`` is what ``read`` last made of ``files``; ``current`` unless they have changed to something unusable or
    do not answer.

    ``kind`` is its name in log lines and metrics; ``readings`` counts the reads after the first, by result.
    """

    def __init__(self, kind: str, files: Sequence[Path], read: Callable[[], T], *, seconds: float = SECONDS) -> None:
        """Raises what ``read`` raises, and ConfigurationError if the files do not answer for ``seconds``."""
        self.kind = kind
        self.current = True
        self.readings = {"ok": 0, "failed": 0}
        self._files = tuple(files)
        self._read = read
        self._seconds = seconds
        self._silent = False
        # None: read whatever is there.
        self._seen: _State | None = None
        try:
            self._seen, found = self._looked()
        except OSError as error:
            raise ConfigurationError(str(files[0]), "", error.strerror or "can't be read") from None
        if isinstance(found, ConfigurationError):
            raise found
        assert found is not None  # noqa: S101 - nothing was seen before
        self.value: T = found

    def look(self, *, anyway: bool = False) -> None:
        """Read the files again if they have changed, or ``anyway``. Returns in bounded time."""
        if anyway:
            self._seen = None
        try:
            state, found = self._looked()
        except OSError as error:
            self._seen = None
            if not self._silent:
                self._failed(error.strerror or "can't be read")
            self._silent = True
            return
        self._silent = False
        if state == self._seen:
            return
        self._seen = state
        if isinstance(found, ConfigurationError):
            self._failed(str(found))
        elif found is not None:
            self.value = found
            self.current = True
            self.readings["ok"] += 1
            log.info("credentials reloaded", kind=self.kind)

    def _failed(self, problem: str) -> None:
        self.current = False
        self.readings["failed"] += 1
        log.error("credentials not reloaded", kind=self.kind, problem=problem)

    def _looked(self) -> tuple[_State, T | ConfigurationError | None]:
        """The state of the files, and what they hold, None if they have not changed. Raises OSError if they do not
        answer."""
        return limited(f"{self.kind} {', '.join(map(str, self._files))}", self._read_if_changed, self._seconds)

    def _read_if_changed(self) -> tuple[_State, T | ConfigurationError | None]:
        # Before reading: the next look then notices a change made meanwhile.
        state = self._state()
        if state == self._seen:
            return state, None
        try:
            return state, self._read()
        except ConfigurationError as error:
            return state, error

    def _state(self) -> _State:
        return tuple(map(_state_of, self._files))


def _state_of(file: Path) -> tuple[int, int, int] | None:
    mark(str(file))
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
