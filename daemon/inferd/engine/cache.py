"""Compiled models on disk, protected by checksums and bounded in size.

OpenVINO's own cache has no checksum (flipped bytes load silently and give outputs off by 1e36), is
written in place and is never pruned. Here a file is named after the digest of its key, carries a
checksum, and appears under its name only when complete. Over the size cap, the least recently used
files are removed. Several processes may share a folder. No error is fatal: without a usable cache,
models are compiled again and a warning is logged.
"""

import fcntl
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from inferd import atomic_file, regular_file
from inferd.config.daemon import Settings
from inferd.patience import SECONDS, limited

_log = structlog.get_logger()

T = TypeVar("T")

_MAGIC = b"inferd blob 1\n"
_HEADER_SIZE = len(_MAGIC) + hashlib.sha256().digest_size

_LOCK_RETRY_SECONDS = 0.1
# Reading or writing a blob of gigabytes shows no progress in between.
_TRANSFER_SECONDS = 600.0
_MARK = ".passed"
# How long files other than blobs are kept. Writes and locks last longer only if their process has died, as no compile
# takes an hour. Marks are tiny; one not used for this long belongs to a model that is no longer served.
_KEPT_SECONDS = {atomic_file.UNFINISHED: 3600.0, ".lock": 3600.0, _MARK: 90 * 86400.0}


def blob_key(digest: str, facts: Mapping[str, str]) -> str:
    """The name, in hex, of the blob compiled from content ``digest`` under ``facts``.

    Facts are everything else that determines the compiled code: OpenVINO's version, the device's full
    name, shapes, preprocessing, precision. Streams, threads and hints are not among them: one blob
    serves every setting, as ``import_model`` honours new ones.
    """
    return hashlib.sha256(json.dumps([digest, sorted(facts.items())]).encode()).hexdigest()


class BlobCache:
    """Blobs in ``directory``, at most ``max_bytes`` in total; 0 turns the cache off.

    The folder is created with mode 0700 when the first blob is stored.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes

    @classmethod
    def of(cls, settings: Settings) -> "BlobCache":
        """The cache that ``settings`` configure."""
        return cls(settings.cache_dir, settings.cache_max_bytes)

    @property
    def directory(self) -> Path:
        """The folder of the blobs."""
        return self._directory

    @property
    def max_bytes(self) -> int:
        """The cap on the total size of all blobs."""
        return self._max_bytes

    @property
    def enabled(self) -> bool:
        """Whether the cache stores anything."""
        return self._max_bytes > 0

    def load(self, key: str) -> bytes | None:
        """The blob stored under ``key``, None if there is none; a damaged one is removed."""
        if not self.enabled:
            return None
        file = self._file(key)
        try:
            header, blob = self._limited(partial(self._stored, file), _TRANSFER_SECONDS)
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("cached blob not read", file=str(file), reason=error.strerror)
            return None
        if header != _header(key, blob):
            _log.warning("damaged cached blob discarded", file=str(file))
            with suppress(OSError):
                file.unlink()
            return None
        with suppress(OSError):
            os.utime(file)
        return blob

    def store(self, key: str, blob: bytes | memoryview) -> None:
        """Store ``blob`` under ``key``, then prune. On failure, log a warning."""
        if not self.enabled:
            return
        if _HEADER_SIZE + len(blob) > self._max_bytes:
            _log.warning("blob not cached: larger than the whole cache", bytes=len(blob), max_bytes=self._max_bytes)
            return
        try:
            self._limited(partial(self._write, key, blob), _TRANSFER_SECONDS)
        except OSError as error:
            _log.warning("cache not written", directory=str(self._directory), reason=error.strerror)

    def marked(self, key: str) -> bool:
        """Whether :meth:`mark` was called for ``key``, by any process that shares the folder."""
        if not self.enabled:
            return False
        try:
            self._limited(partial(os.utime, self._mark_file(key)))
        except OSError:
            return False
        return True

    def mark(self, key: str) -> None:
        """Remember ``key``. On failure, log a warning."""
        if not self.enabled:
            return
        try:
            self._limited(partial(self._write_mark, key))
        except OSError as error:
            _log.warning("cache not written", directory=str(self._directory), reason=error.strerror)

    @contextmanager
    def lock(self, key: str, timeout: float = 600.0) -> Iterator[None]:
        """Lock ``key`` against other processes and threads, so that only one of them builds its blob.

        After ``timeout`` seconds, or if the folder does not support locks, the body runs without the lock:
        building twice costs time, but waiting for ever would stop the service.
        """
        held = self._acquire(key, timeout) if self.enabled else None
        try:
            yield
        finally:
            if held is not None:
                # Unlinked while locked, so that no lock file is left behind; _acquire handles this.
                with suppress(OSError):
                    self._lock_file(key).unlink()
                os.close(held)

    def _acquire(self, key: str, timeout: float) -> int | None:
        """A descriptor that holds the lock until it is closed, or None."""
        give_up = time.monotonic() + timeout
        try:
            self._limited(self._make_directory)
            while True:
                descriptor = os.open(self._lock_file(key), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
                try:
                    locked = self._flock(descriptor, give_up) and self._current(descriptor, key)
                except BaseException:
                    os.close(descriptor)
                    raise
                if locked:
                    return descriptor
                os.close(descriptor)
                if time.monotonic() >= give_up:
                    _log.warning("gave up waiting for another build of the same blob", key=key, seconds=timeout)
                    return None
        except OSError as error:
            _log.warning("cache not locked", directory=str(self._directory), reason=error.strerror)
            return None

    @staticmethod
    def _flock(descriptor: int, give_up: float) -> bool:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    return False
                # flock has no timeout, and signals can only interrupt it on the main thread.
                time.sleep(_LOCK_RETRY_SECONDS)
            else:
                return True

    def _current(self, descriptor: int, key: str) -> bool:
        """Whether the locked file still has its name; the last holder may have unlinked it."""
        try:
            return os.path.samestat(os.fstat(descriptor), self._lock_file(key).stat())
        except FileNotFoundError:
            return False

    def _prune(self, newest: Path) -> None:
        """Delete leftovers of crashed writers, then the least recently used blobs over the cap."""
        blobs: list[tuple[bool, int, int, Path]] = []
        now = time.time()
        for file in self._directory.iterdir():
            with suppress(FileNotFoundError):
                stat = file.stat()
                if file.suffix == ".blob":
                    blobs.append((file == newest, stat.st_mtime_ns, stat.st_size, file))
                elif now - stat.st_mtime > _KEPT_SECONDS.get(file.suffix, math.inf):
                    file.unlink()
        total = sum(size for _, _, size, _ in blobs)
        for _, _, size, file in sorted(blobs):
            if total <= self._max_bytes:
                return
            with suppress(FileNotFoundError):
                file.unlink()
            total -= size

    def _limited(self, work: Callable[[], T], seconds: float = SECONDS) -> T:
        """``work``, on the folder. Raises TimeoutError if it does not answer."""
        return limited(f"cache {self._directory}", work, seconds)

    def _stored(self, file: Path) -> tuple[bytes, bytes]:
        with regular_file.opened(file, self._max_bytes) as stream:
            return stream.read(_HEADER_SIZE), stream.read()

    def _write(self, key: str, blob: bytes | memoryview) -> None:
        self._make_directory()
        atomic_file.write(self._file(key), _header(key, blob), blob)
        self._prune(self._file(key))

    def _write_mark(self, key: str) -> None:
        self._make_directory()
        atomic_file.write(self._mark_file(key), b"")

    def _make_directory(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _file(self, key: str) -> Path:
        return self._directory / f"{key}.blob"

    def _mark_file(self, key: str) -> Path:
        return self._directory / f"{key}{_MARK}"

    def _lock_file(self, key: str) -> Path:
        return self._directory / f"{key}.lock"


def _header(key: str, blob: bytes | memoryview) -> bytes:
    # The checksum covers the key, so a file under another key's name counts as damaged, too.
    digest = hashlib.sha256(key.encode())
    digest.update(blob)
    return _MAGIC + digest.digest()
