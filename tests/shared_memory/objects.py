"""POSIX shared memory objects as a client makes them, removed at the end of a test."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("/dev/shm")


@dataclass(frozen=True)
class SharedObject:
    """An existing object: ``name`` has no slash."""

    name: str
    descriptor: int

    @property
    def key(self) -> str:
        return f"/{self.name}"

    @property
    def path(self) -> Path:
        return FOLDER / self.name

    def write(self, data: bytes, at: int = 0) -> None:
        assert os.pwrite(self.descriptor, data, at) == len(data)

    def read(self, nbytes: int, at: int = 0) -> bytes:
        return os.pread(self.descriptor, nbytes, at)

    def truncate(self, size: int) -> None:
        os.ftruncate(self.descriptor, size)


@contextmanager
def shared_object(size: int, mode: int = 0o600, owner: str = "") -> Iterator[SharedObject]:
    """An object of ``size`` zero bytes; its name makes it the client ``owner``'s, if there is one."""
    name = f"{owner}+" * bool(owner) + f"test-{secrets.token_hex(8)}"
    descriptor = os.open(FOLDER / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    try:
        os.ftruncate(descriptor, size)
        yield SharedObject(name, descriptor)
    finally:
        os.close(descriptor)
        with suppress(FileNotFoundError):
            (FOLDER / name).unlink()
