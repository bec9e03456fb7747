"""Reads regular files up to a stated size. A pipe or a device could block its reader for ever, a device or a sparse
file fill the memory, and a network file system may not answer."""

import errno
import os
import stat
from io import FileIO
from pathlib import Path

from inferd.patience import limited, mark

SMALL_BYTES = 1 << 20
"""The largest file of settings, tokens, certificates or tuning results."""
_CHUNK_BYTES = 1 << 20


def read(path: Path, most_bytes: int = SMALL_BYTES) -> bytes:
    """The content of ``path``, which messages call by its name alone.

    Raises OSError, whose ``strerror`` says so, if it is not a regular file, has more than ``most_bytes``, or does not
    answer in time.
    """
    return limited(str(path), lambda: _content(path, most_bytes))


def opened(path: Path | str, most_bytes: int | None = None) -> FileIO:
    """``path``, to be read. Raises OSError unless it is a regular file of at most ``most_bytes``."""
    # Looked at first: to open a device may already have an effect.
    _check(path, os.stat(path), most_bytes)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        # It may have become a pipe by the time it was opened.
        _check(path, os.fstat(descriptor), most_bytes)
    except BaseException:
        os.close(descriptor)
        raise
    return FileIO(descriptor)


def _content(path: Path, most_bytes: int) -> bytes:
    mark(path.name)
    with opened(path, most_bytes) as stream:
        found = bytearray()
        # What is appended meanwhile counts, and some files of the kernel state no size.
        while chunk := stream.read(_CHUNK_BYTES):
            mark(path.name)
            found += chunk
            if len(found) > most_bytes:
                raise _too_large(path, most_bytes)
    return bytes(found)


def _check(path: Path | str, status: os.stat_result, most_bytes: int | None) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if most_bytes is not None and status.st_size > most_bytes:
        raise _too_large(path, most_bytes)


def _too_large(path: Path | str, most_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"larger than {most_bytes} bytes", str(path))
