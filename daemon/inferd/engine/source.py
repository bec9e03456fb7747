"""The files and settings that a model version is loaded from."""

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

from inferd.config.model import ModelConfig
from inferd.content import Content, FileSet
from inferd.errors import ConfigurationError, ContentChanged, LoadFailed, RepositoryError
from inferd.patience import limited

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What to load: the version's files and its settings.

    ``cpu_threads`` is its part of the CPU budget, 0 for all of it. ``inline`` sets whether runs are inline, if
    the model and its settings allow that; None leaves it to warm-up. Once :meth:`settled`, ``content`` identifies
    the files' content, and no other content is loaded.
    """

    name: str
    version: int
    file_set: FileSet
    config: ModelConfig
    cpu_threads: int = 0
    inline: bool | None = None
    content: Content | None = None

    @property
    def path(self) -> Path:
        """The path for OpenVINO to read."""
        return self.content.main if self.content is not None else self.file_set.main

    @property
    def digest(self) -> str:
        """The SHA-256 of the content of all files, in hex."""
        if self.content is None:
            raise AssertionError("it has to be settled first")
        return self.content.digest

    def settled(self) -> Self:
        """A copy with the files' present content, which is read in full; if settled before, the content must be the
        same. Raises LoadFailed if a file can't be read, and ContentChanged."""
        if self.content is not None and self._is_unchanged(self.content):
            return self
        try:
            content = self._limited(lambda: self.file_set.look().read())
        except RepositoryError as error:
            raise LoadFailed(self.name, self.version, str(error)) from error
        except OSError as error:
            raise self._unread(error) from error
        if self.content is not None and content.digest != self.digest:
            raise ContentChanged(self.name, self.version)
        return replace(self, content=content)

    def check(self) -> None:
        """Raises ContentChanged if the files may have changed since it was settled."""
        if self.content is None or not self._is_unchanged(self.content):
            raise ContentChanged(self.name, self.version)

    def verify(self) -> None:
        """Like :meth:`check`, but by reading the files again: for results that are cached under their digest."""
        self.check()
        try:
            same = self.content is not None and self._limited(self.content.read).digest == self.digest
        except (OSError, RepositoryError):
            same = False
        if not same:
            raise ContentChanged(self.name, self.version)

    def misconfigured(self, key: str, problem: str, allowed: str = "") -> ConfigurationError:
        """The error for a key of ``model.toml`` that does not fit the model."""
        return ConfigurationError(f"{self.name}/model.toml", key, problem, allowed=allowed)

    def _is_unchanged(self, content: Content) -> bool:
        try:
            return self._limited(content.is_unchanged)
        except OSError:
            return False

    def _limited(self, work: Callable[[], T]) -> T:
        """``work``, which reads the files. Raises TimeoutError if they do not answer."""
        return limited(f"model '{self.name}' version {self.version}", work)

    def _unread(self, error: OSError) -> LoadFailed:
        # A file that disappeared or changed between finding and reading it is not the model's fault.
        if isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE:
            return ContentChanged(self.name, self.version)
        which = f"'{Path(error.filename).name}'" if isinstance(error.filename, str) else "one of its files"
        return LoadFailed(self.name, self.version, f"{which} can't be read: {error.strerror}")
