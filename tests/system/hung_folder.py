"""A file system that never answers, like a network file system whose server is gone."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_LAZILY = 2


@contextmanager
def hung(folder: Path) -> Iterator[None]:
    """Everything below ``folder`` hangs: FUSE asks this process, which never reads what it is asked. Afterwards all
    that waited fails. Skips the test where mounting is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"no FUSE: {error.strerror}")
    try:
        options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other".encode()
        if libc.mount(b"hung", os.fsencode(folder), b"fuse", 0, options):
            pytest.skip(f"no mounting: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            # While the device is open, unmounting would wait for an answer as well.
            os.close(device)
            device = -1
            libc.umount2(os.fsencode(folder), _LAZILY)
    finally:
        if device >= 0:
            os.close(device)
