"""POSIX shared memory objects made by other processes: opened, never created, and read in ways that survive what
their makers do.

An object can be truncated at any time. Touching a page of a mapping that is gone then ends the process (SIGBUS), and
no check beforehand closes the gap. So memory is read and written with system calls on the descriptor, which come short
instead, and is mapped only if clients are trusted not to truncate it.
"""

import mmap
import os
import stat
import weakref
from collections.abc import Callable

from inferd.errors import InferdError
from inferd.shared_memory.regions import is_accessible
from inferd.tensors import Buffer

# Where the C library's shm_open() puts them.
_FOLDER = "/dev/shm"  # noqa: S108 - nothing is made there
# OpenVINO's own alignment of tensors.
_ALIGNMENT = 64
# Below this size, copying costs less than replacing a tensor's memory and putting it back.
_WORTH_MAPPING = 64 << 10


class OpenedObject:
    """An object that is open until it is closed or taken over: its descriptor, its size and its identity."""

    def __init__(self, name: str) -> None:
        """Raises OSError if there is no such object that this process may use; the text is not for clients."""
        path = f"{_FOLDER}/{name}"
        # Checked first: opening a pipe or a device may already have an effect.
        _check(os.lstat(path))
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        self.descriptor = os.open(path, flags)
        try:
            found = os.fstat(self.descriptor)
            _check(found)
        except BaseException:
            os.close(self.descriptor)
            raise
        self.size = found.st_size
        self.identity = (found.st_dev, found.st_ino)

    def close(self) -> None:
        """Close it; it was not taken over."""
        os.close(self.descriptor)


def _check(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError("not a regular file")
    if found.st_nlink > 1:
        # Possibly another client's object, under a name that this client may use.
        raise OSError("has another name")
    if not is_accessible(found.st_mode, found.st_uid, found.st_gid, os.geteuid(), {os.getegid(), *os.getgroups()}):
        raise OSError("not accessible to this process")


class PosixMemory:
    """``nbytes`` from ``offset`` on of an opened object, which it takes over. Open as long as it is referenced, and
    mapped as long as a view is referenced.

    ``shrunk`` makes the error to raise if the object has become too small.
    """

    def __init__(
        self, opened: OpenedObject, offset: int, nbytes: int, *, shrunk: Callable[[], InferdError], mapped: bool
    ) -> None:
        """Raises OSError or ValueError if it can't be mapped."""
        self._descriptor = opened.descriptor
        self._offset = offset
        self._end = offset + nbytes
        self._shrunk = shrunk
        self._mapping: mmap.mmap | None = None
        # A mapping begins at a page boundary.
        self._before = offset % mmap.ALLOCATIONGRANULARITY
        if mapped:
            self._mapping = mmap.mmap(opened.descriptor, nbytes + self._before, offset=offset - self._before)
        weakref.finalize(self, os.close, opened.descriptor)

    def read(self, at: int, target: memoryview) -> None:
        """As :meth:`inferd.tensors.Memory.read`."""
        at += self._offset
        while target.nbytes:
            if not (got := os.preadv(self._descriptor, [target], at)):
                raise self._shrunk()
            target, at = target[got:], at + got

    def write(self, at: int, data: Buffer) -> None:
        """As :meth:`inferd.tensors.Memory.write`."""
        # If the object is truncated meanwhile, this makes it grow again, within the region; that does no harm.
        self._check_size()
        rest, at = memoryview(data), at + self._offset
        while rest.nbytes:
            try:
                wrote = os.pwrite(self._descriptor, rest, at)
            except OSError:
                # A hole in the object, with no memory left to fill it.
                raise self._shrunk() from None
            if wrote == rest.nbytes:
                return
            rest, at = rest.cast("B")[wrote:], at + wrote

    def view(self, at: int, nbytes: int) -> memoryview | None:
        """As :meth:`inferd.tensors.Memory.view`; None for memory that is small or not aligned as OpenVINO's own."""
        begin = self._before + at
        if self._mapping is None or nbytes < _WORTH_MAPPING or begin % _ALIGNMENT:
            return None
        self._check_size()
        return memoryview(self._mapping)[begin : begin + nbytes]

    def _check_size(self) -> None:
        if os.fstat(self._descriptor).st_size < self._end:
            raise self._shrunk()
