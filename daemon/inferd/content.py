"""The files of a model version, their state on disk, and the digest of their content.

A version is all regular files below its folder, including hidden ones and those in subfolders: the
files that a format keeps next to its main file have arbitrary names (ONNX's external data, a
SavedModel's ``variables/``). A model that is one file at the root of the repository has no folder
of its own; it is that file, the companion files of its format, and the files that it names.

The digest stands for the content wherever that decides something: compiled blobs, preflight
marks, profiles. Stamps tell cheaply whether anything was written or moved since the digest was
taken, which verifies what OpenVINO reads, because it reads the files itself.
"""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from io import FileIO
from os.path import basename, commonpath, exists, isdir, islink, join, realpath, relpath
from pathlib import Path

from inferd import regular_file
from inferd.errors import RepositoryError, one_line
from inferd.patience import mark

# Device, inode, size and the times, in nanoseconds, of the last change of content and of inode. The last can't be set
# back.
Stamp = tuple[int, int, int, int, int]

SETTINGS = "model.toml"
# Every ext4 volume has this folder at its root, and a repository or a model often is a volume of its own.
LOST_FOUND = "lost+found"

_MOST_FILES = 65536
# StringStringEntryProto in onnx.proto: field 1, "location", then field 2 with its length and value.
_LOCATION = re.compile(rb"\x0a\x08location\x12([\x01-\x7f]|[\x80-\xff][\x01-\x1f])")
_LONGEST_ENTRY = 12 + 2 + 4096
# Protobuf has no longer messages.
_MOST_ONNX = 2 << 30
_CHUNK = 4 << 20


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where files may be: below ``root``, and with ``external_links`` wherever symbolic links lead. The files of one
    version may have ``max_bytes`` together, and are among the ``digests``, if there are some: SHA-256 in hex by paths
    relative to the root."""

    root: Path
    external_links: bool = False
    max_bytes: int = 64 << 30
    digests: Mapping[str, str] | None = field(default=None, hash=False, repr=False)

    def check_link(self, path: Path | str, named: Path | str = "") -> None:
        """Raises RepositoryError if ``path``, with links followed, is outside the root or does not exist. Messages call
        it ``named``, if given, because folders above it may be links themselves."""
        mark(self.shown(named or path))
        # realpath rather than Path.resolve, which raises on a loop of links up to Python 3.12.
        root, target = realpath(self.root), realpath(path)
        if not self.external_links and commonpath((root, target)) != root:
            problem = "is a symbolic link that leads out of the model repository"
            raise RepositoryError(self.shown(named or path), problem)
        if not exists(target):
            problem = "is a broken or unreadable symbolic link" if islink(path) else "can't be read"
            raise RepositoryError(self.shown(named or path), problem)

    def check_digest(self, path: Path, digest: str | None = None) -> None:
        """Raises RepositoryError if ``path`` is not listed, or not with this ``digest``."""
        if self.digests is None:
            return
        wanted = self.digests.get(str(path.relative_to(self.root)))
        if wanted is None:
            raise RepositoryError(self.shown(path), "is not listed in model_digests")
        if digest is not None and digest != wanted:
            raise RepositoryError(self.shown(path), f"has the digest {digest}; model_digests lists {wanted}")

    def check_absent(self, path: Path) -> None:
        """Raises RepositoryError if ``path``, which is absent, is listed."""
        if self.digests is not None and str(path.relative_to(self.root)) in self.digests:
            raise RepositoryError(self.shown(path), "is listed in model_digests and absent")

    def shown(self, path: Path | str) -> str:
        """``path`` as clients may read it: relative to the root."""
        return one_line(str(Path(path).relative_to(self.root)))


@dataclass(frozen=True, slots=True)
class File:
    """One file of a version: its ``name`` within the version, its path, and its ``stamp``. A broken symbolic ``link``
    counts by its target."""

    name: str
    path: str
    stamp: Stamp
    link: str = ""


@dataclass(frozen=True, slots=True)
class Content:
    """A version's files at one moment, sorted by name. OpenVINO reads ``main``, in a folder that is not a link: moving
    a link meanwhile changes nothing. ``digest`` is "" until :meth:`read`."""

    main: Path
    files: tuple[File, ...]
    # Files that come and go next to these do not count as a change; but these show a file moved away and back.
    folders: tuple[tuple[str, Stamp], ...] = field(default=(), compare=False)
    digest: str = field(default="", compare=False)
    check_digest: Callable[[str, str], None] | None = field(default=None, compare=False, repr=False)

    def read(self) -> "Content":
        """The same with its digest, a SHA-256 in hex over the names and contents of all files. Raises OSError if one
        can't be read or has changed since, and RepositoryError if one has another digest than is listed."""
        # A folder may hold several files that could be the main one.
        main = next((f.name for f in self.files if f.path == str(self.main)), "")
        total = hashlib.sha256(json.dumps(main).encode())
        for file in self.files:
            digest = file.link or _digest(file)
            if self.check_digest is not None and not file.link:
                self.check_digest(file.name, digest)
            total.update(json.dumps([file.name, digest]).encode())
        return replace(self, digest=total.hexdigest())

    def is_unchanged(self) -> bool:
        """Whether nothing in it was written, moved, added or removed since it was looked at."""
        try:
            return all(_stamp_of(f.name, f.path, link=bool(f.link)) == f.stamp for f in self.files) and all(
                _stamp_of("a folder", path) == stamp for path, stamp in self.folders
            )
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class FileSet:
    """Which files belong to a version: ``main``, which OpenVINO reads (the folder of a SavedModel), and everything
    below ``folder``; if that is None, the companions of ``main`` in its format and the files that ``main`` names."""

    main: Path
    folder: Path | None
    bounds: Bounds

    def look(self) -> Content:
        """The files as they are now. Raises RepositoryError if one of them can't be served."""
        try:
            content = self._next_to_main() if self.folder is None else self._below(self.folder)
            self._check_size(self.folder or self.main, sum(0 if file.link else file.stamp[2] for file in content.files))
            if self.bounds.digests is None:
                return content
            for file in content.files:
                if not file.link:
                    self._check_digest(file.name)
            return replace(content, check_digest=self._check_digest)
        except OSError as error:
            real, named = realpath(self._folder), self._folder
            path = error.filename if isinstance(error.filename, str) else real
            within = relpath(path, real) if commonpath((real, path)) == real else ""
            raise RepositoryError(self.bounds.shown(named / within), f"can't be read: {error.strerror}") from None

    def _check_digest(self, name: str, digest: str | None = None) -> None:
        self.bounds.check_digest(self._folder / name, digest)

    @property
    def _folder(self) -> Path:
        return self.folder or self.main.parent

    def _below(self, folder: Path) -> Content:
        top = realpath(folder)
        files: list[File] = []
        folders: dict[tuple[int, int], tuple[str, Stamp]] = {}
        waiting = [""]
        while waiting:
            inside = waiting.pop()
            where = join(top, inside) if inside else top
            mark(self.bounds.shown(folder / inside))
            stamp = _stamp(os.stat(where))
            if stamp[:2] in folders:
                # Links may form a circle.
                continue
            folders[stamp[:2]] = where, stamp
            for entry in sorted(os.listdir(where)):
                if not inside and entry in (SETTINGS, LOST_FOUND):
                    continue
                found = self._found(join(inside, entry), top)
                if isinstance(found, File):
                    files.append(found)
                elif found is not None:
                    waiting.append(found)
                if len(files) + len(waiting) > _MOST_FILES:
                    raise RepositoryError(self.bounds.shown(folder), f"holds more than {_MOST_FILES} files")
        main = Path(top, self.main.relative_to(folder))
        return Content(main, tuple(sorted(files, key=lambda f: f.name)), tuple(folders.values()))

    def _next_to_main(self) -> Content:
        top, name = realpath(self.main.parent), self.main.name
        main = self._file(name, join(top, name))
        companions = sorted(set(self._companions(main, top)))
        return Content(Path(main.path), (main, *(self._file(name, path) for name, path in companions)))

    def _companions(self, main: File, top: str) -> Iterator[tuple[str, str]]:
        """Name and path of the files that are read together with ``main``, as far as they exist."""
        names: frozenset[str] = frozenset()
        match self.main.suffix:
            case ".xml":
                names = frozenset((self.main.with_suffix(".bin").name,))
            case ".pdmodel":
                names = frozenset((self.main.with_suffix(".pdiparams").name,))
            case ".onnx":
                names = _locations(main.path, main.stamp)
        if len(names) > _MOST_FILES:
            raise RepositoryError(self.bounds.shown(self.main), f"names more than {_MOST_FILES} files")
        for name in names:
            path = join(top, name)
            real = realpath(path)
            if self.main.suffix == ".onnx" and commonpath((top, real)) != top:
                # OpenVINO reads no external data from other places.
                continue
            if (islink(path) or exists(real)) and not isdir(real):
                yield name, path if exists(path) else real

    def _found(self, name: str, top: str) -> File | str | None:
        """What ``name`` is: a file, a folder to look into (its name), or nothing any more."""
        path = join(top, name)
        mark(self.bounds.shown(self._folder / name))
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None
        if stat.S_ISLNK(status.st_mode):
            try:
                target = os.stat(path)
            except OSError:
                return File(name, path, _stamp(status), f"-> {os.readlink(path)}")
            self.bounds.check_link(path, self._folder / name)
            status = target
        return name if stat.S_ISDIR(status.st_mode) else self._regular(name, path, status)

    def _file(self, name: str, path: str) -> File:
        self.bounds.check_link(path, self._folder / name)
        return self._regular(name, path, os.stat(path))

    def _regular(self, name: str, path: str, status: os.stat_result) -> File:
        # Opening a pipe may take for ever, and opening a device may do anything.
        if not stat.S_ISREG(status.st_mode):
            raise RepositoryError(self.bounds.shown(self._folder / name), "is not a regular file")
        self._check_size(self._folder / name, status.st_size)
        return File(name, path, _stamp(status))

    def _check_size(self, path: Path, size: int) -> None:
        # By the size that the file states: a sparse one takes no space on disk, and all of that to read.
        if size > (most := self.bounds.max_bytes):
            problem = f"has {size} bytes, more than {most} (repository_max_model_bytes)"
            raise RepositoryError(self.bounds.shown(path), problem)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _stamp_of(name: str, path: str, *, link: bool = False) -> Stamp:
    mark(name)
    return _stamp(os.lstat(path) if link else os.stat(path))


def _digest(file: File) -> str:
    digest, left = hashlib.sha256(), file.stamp[2]
    _check_same(file, os.stat(file.path))
    with _opened(file.name, file.path) as stream:
        _check_same(file, os.fstat(stream.fileno()))
        buffer = memoryview(bytearray(_CHUNK))
        while size := stream.readinto(buffer):
            mark(file.name)
            digest.update(buffer[:size])
            left -= size
            if left < 0:
                # Otherwise a file that grows as fast as it is read would never end.
                raise _changed(file)
    return digest.hexdigest()


def _check_same(file: File, status: os.stat_result) -> None:
    if _stamp(status) != file.stamp:
        raise _changed(file)


def _changed(file: File) -> OSError:
    return OSError(errno.ESTALE, "it has changed meanwhile", file.path)


def _opened(name: str, path: str) -> FileIO:
    mark(name)
    return regular_file.opened(path)


@lru_cache(maxsize=1024)
def _locations(path: str, stamp: Stamp) -> frozenset[str]:
    """Where the ONNX file at ``path``, in the state ``stamp``, keeps tensors outside itself, in subgraphs and
    attributes too. Searches the bytes alone; a false match does no harm."""
    found: set[str] = set()
    if stamp[2] > _MOST_ONNX:
        return frozenset()
    with _opened(basename(path), path) as stream:
        before = b""
        while (chunk := stream.read(_CHUNK)) and len(found) <= _MOST_FILES:
            mark()
            window = before + chunk
            for entry in _LOCATION.finditer(window):
                low, *high = entry[1]
                size = low & 0x7F | (high[0] << 7 if high else 0)
                value = window[entry.end() : entry.end() + size]
                # A match that is cut off here is whole in the next window.
                if len(value) == size and b"\0" not in value:
                    found.add(os.fsdecode(value))
            before = window[-_LONGEST_ENTRY:]
    return frozenset(found)
