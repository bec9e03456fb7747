"""What a model version is loaded from."""

import errno
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from inferd.config.model import ModelConfig
from inferd.content import Content, FileSet
from inferd.errors import ConfigurationError, ContentChanged, LoadFailed, RepositoryError


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What to load: the version's files and its settings.

    ``cpu_threads`` is its part of the CPU budget, 0 where it may have all. ``inline`` says whether runs are to be
    computed where they start, for those that may be and whose settings leave it open; None leaves it to warm-up. Once
    it is :meth:`settled`, ``content`` is what the files hold, and what is loaded is that or nothing.
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
        """What OpenVINO reads."""
        return self.content.main if self.content is not None else self.file_set.main

    @property
    def digest(self) -> str:
        """The content of all files, as a SHA-256 in hex."""
        if self.content is None:
            raise AssertionError("it has to be settled first")
        return self.content.digest

    def settled(self) -> Self:
        """The same with what its files hold now, all of which are read; one that was settled before has to find
        what it held then. Raises LoadFailed where a file can't be read, and ContentChanged."""
        if self.content is not None and self.content.is_unchanged():
            return self
        try:
            content = self.file_set.look().read()
        except RepositoryError as error:
            raise LoadFailed(self.name, self.version, str(error)) from error
        except OSError as error:
            raise self._unread(error) from error
        if self.content is not None and content.digest != self.digest:
            raise ContentChanged(self.name, self.version)
        return replace(self, content=content)

    def check(self) -> None:
        """Raises ContentChanged where its files may have changed since it was settled."""
        if self.content is None or not self.content.is_unchanged():
            raise ContentChanged(self.name, self.version)

    def verify(self) -> None:
        """The same, by reading the files once more: for what is kept for good under their digest."""
        self.check()
        try:
            same = self.content is not None and self.content.read().digest == self.digest
        except OSError:
            same = False
        if not same:
            raise ContentChanged(self.name, self.version)

    def misconfigured(self, key: str, problem: str, allowed: str = "") -> ConfigurationError:
        """The error for a key of ``model.toml`` that does not fit the model."""
        return ConfigurationError(f"{self.name}/model.toml", key, problem, allowed=allowed)

    def _unread(self, error: OSError) -> LoadFailed:
        # A file that went or changed between the look and the reading is no fault of the model's.
        if isinstance(error, FileNotFoundError) or error.errno == errno.ESTALE:
            return ContentChanged(self.name, self.version)
        which = f"'{Path(error.filename).name}'" if isinstance(error.filename, str) else "a file of it"
        return LoadFailed(self.name, self.version, f"{which} can't be read: {error.strerror}")
