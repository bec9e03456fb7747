"""Reads regular files up to a stated size. A pipe or a device could block its reader for ever, a device or a sparse
file fill the memory, and a network file system may not answer."""

import errno
import os
import stat
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


def opened(path: Path | str) -> int:
    """A descriptor to read ``path`` with. Raises OSError unless it is a regular file."""
    # Looked at first: to open a device may already have an effect.
    _check_kind(path, os.stat(path))
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        # It may have become a pipe by the time it was opened.
        _check_kind(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _content(path: Path, most_bytes: int) -> bytes:
    mark(path.name)
    with open(opened(path), "rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        _check_size(path, size, most_bytes)
        found = bytearray()
        # What is appended meanwhile counts, and some files of the kernel state no size.
        while chunk := stream.read(_CHUNK_BYTES):
            mark(path.name)
            found += chunk
            _check_size(path, len(found), most_bytes)
    return bytes(found)


def _check_kind(path: Path | str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def _check_size(path: Path, size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise OSError(errno.EFBIG, f"larger than {most_bytes} bytes", str(path))
