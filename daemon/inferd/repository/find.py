"""Finds models and their versions on disk; loads nothing.

Under the root, any mix of::

    <model>/<version>/model.<ext>    versions: folders named 1, 2, 10
    <model>/model.<ext>              version 1
    <model>.<ext>                    version 1

A folder may hold one model file of another name instead of ``model.<ext>``, and a model's
folder a ``model.toml``. Where a file can be, so can the folder of a TensorFlow SavedModel,
``model.saved_model``; a version's folder may also be one itself, with its ``saved_model.pb``.
Hidden entries are neither models nor versions. Everything below a version's folder belongs to it
(see :mod:`inferd.content`), hidden or not. Nothing outside the root is served: a symbolic link may
lead elsewhere within it and, unless that is allowed, no further.

A broken model never keeps another from being served. Its error names files relative to the root,
because clients get to read it.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

# Not Path's own methods: they raise on a link to a place that this process may not read,
# and one such link would keep every other model from being found.
from os.path import exists, getsize, isdir, isfile, islink, lexists
from pathlib import Path
from typing import Self, TypeVar

from inferd import regular_file
from inferd.config.daemon import Settings
from inferd.config.model import ModelConfig, VersionSettings, parse, read
from inferd.content import LOST_FOUND, SETTINGS, Bounds, Content, FileSet
from inferd.errors import InferdError, RepositoryError, UnknownModel, listed, one_line
from inferd.patience import SECONDS, limited, mark
from inferd.repository import digests

T = TypeVar("T")

FORMATS = (".xml", ".onnx", ".pb", ".tflite", ".pdmodel")
# TensorFlow's SavedModel is a folder, recognised by this file in it.
_SAVED_MODEL, _SAVED = ".saved_model", "saved_model.pb"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# 18 digits: a version must fit the protocol's int64.
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_MOST_SETTINGS = 64 << 10


@dataclass(frozen=True, slots=True)
class VersionFile:
    """One version on disk: its files, and their state when it was found. Two that are equal have the same
    files, none of which was written, replaced or moved in between."""

    version: int
    file_set: FileSet
    content: Content


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model that can be loaded; ``versions`` are those that its policy selects, ascending."""

    name: str
    config: ModelConfig
    versions: tuple[VersionFile, ...]


@dataclass(frozen=True, slots=True)
class BrokenModel:
    """An entry of the repository that can't be served, and why."""

    name: str
    error: InferdError


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything in the repository, sorted by name."""

    models: tuple[ModelEntry, ...]
    broken: tuple[BrokenModel, ...]


@dataclass(frozen=True, slots=True)
class Repository:
    """A folder of models; each call reads the disk again.

    At most ``max_models`` can be served, the first by name. ``external_links`` follows symbolic links that lead out
    of it. A version may have ``max_model_bytes``. With a ``digests_file`` only the files that it lists are served.
    A model whose folder does not answer for ``seconds`` is broken; the others are found all the same.
    """

    root: Path
    max_models: int = 1024
    external_links: bool = False
    max_model_bytes: int = field(default=64 << 30, kw_only=True)
    digests_file: Path | None = field(default=None, kw_only=True)
    digests: Mapping[str, str] | None = field(default=None, kw_only=True, hash=False, repr=False)
    seconds: float = field(default=SECONDS, kw_only=True)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The repository that ``settings`` name."""
        return cls(
            settings.model_repository,
            settings.repository_max_models,
            settings.repository_external_links,
            max_model_bytes=settings.repository_max_model_bytes,
            digests_file=Path(settings.model_digests) if settings.model_digests else None,
        )

    def scan(self) -> Listing:
        """All models; raises RepositoryError, naming the root, if it can't be read."""
        if (checking := self._with_digests()) is not self:
            return checking.scan()
        try:
            return self._patiently(self._listing)
        except OSError as error:
            raise RepositoryError(str(self.root), _reason(error)) from None

    def _patiently(self, work: Callable[[], T]) -> T:
        """``work`` on one thread or, if a folder hangs, on a thread for each folder, which shows the one."""
        try:
            return limited(f"model repository {self.root}", work, self.seconds)
        except TimeoutError:
            return work()

    def _listing(self) -> Listing:
        """All models. Raises OSError if the root can't be read."""
        candidates = self._candidates()
        models: list[ModelEntry] = []
        broken: list[BrokenModel] = []
        for place, (name, paths) in enumerate(sorted(candidates.items())):
            try:
                self._check_place(name, place)
                models.append(self._answered(name, paths))
            except InferdError as error:
                broken.append(BrokenModel(one_line(name), error))
        return Listing(tuple(models), tuple(broken))

    def oddity(self) -> str:
        """What looks like a mistake about the folder as a whole, and what is expected; empty if nothing does, or if it
        can't be read."""
        try:
            return limited(f"model repository {self.root}", self._mistake, self.seconds)
        except OSError:
            return ""

    def _mistake(self) -> str:
        entries = _visible(self.root)
        found = [p for p in entries if (isdir(p) and p.name != LOST_FOUND) or _is_model_file(p) or p.name == SETTINGS]
        if not found:
            return f"holds no models; expected: {_expected(self.root, 'MODEL')}"
        # 1/model.onnx may be a model named 1, but hardly if all names are those of one model's files.
        if lexists(self.root / SETTINGS) or all(_VERSION.fullmatch(p.name) or p.stem == "model" for p in found):
            own = self.root.absolute()
            model = own.parent if _VERSION.fullmatch(own.name) else own
            problem = f"looks like the folder of one model, as it holds {_names(found)}"
            return f"{problem}; name the folder above that model: {_expected(model.parent, model.name)}"
        return ""

    def find(self, name: str) -> ModelEntry:
        """The model ``name``, which a client may have invented.

        Raises UnknownModel if there is none, and ConfigurationError or RepositoryError
        if it can't be served.
        """
        if not _NAME.fullmatch(name):
            raise UnknownModel(name)
        if (checking := self._with_digests()) is not self:
            return checking.find(name)
        try:
            candidates = self._patiently(self._candidates)
        except OSError as error:
            raise RepositoryError(name, f"the model repository {_reason(error)}") from None
        if name not in candidates:
            raise UnknownModel(name, candidates)
        self._check_place(name, sum(other < name for other in candidates))
        return self._answered(name, candidates[name])

    def _with_digests(self) -> "Repository":
        """One with the present list of digests, this one without a list. Raises RepositoryError if it can't be read."""
        if self.digests_file is None or self.digests is not None:
            return self
        return replace(self, digests=digests.read(self.digests_file))

    def _candidates(self) -> Mapping[str, Sequence[Path]]:
        """The entries at the root that look like models, by the name they claim. Raises OSError if it can't be read."""
        claims: dict[str, list[Path]] = defaultdict(list)
        for path in limited(f"model repository {self.root}: names", partial(_visible, self.root), self.seconds):
            try:
                name = limited(str(path), partial(_claim, path), self.seconds)
            except TimeoutError:
                # A folder of a file system that is gone. Reading it says so.
                name = path.name
            if name:
                claims[name].append(path)
        return claims

    def _answered(self, name: str, paths: Sequence[Path]) -> ModelEntry:
        """The model ``name``. Raises InferdError if it can't be served, or does not answer."""
        try:
            return limited(str(paths[0]), partial(self._entry, name, paths), self.seconds)
        except OSError as error:
            raise RepositoryError(one_line(name), _reason(error)) from None

    def _check_place(self, name: str, place: int) -> None:
        if place >= self.max_models:
            problem = f"the repository holds more than {self.max_models} models (repository_max_models); remove some"
            raise RepositoryError(one_line(name), problem)

    def _entry(self, name: str, paths: Sequence[Path]) -> ModelEntry:
        if not _NAME.fullmatch(name):
            allowed = "up to 128 letters, digits, '.', '_' or '-', of which the first is a letter or digit"
            raise RepositoryError(one_line(name), f"can't be a model's name; allowed: {allowed}")
        if len(paths) > 1:
            raise RepositoryError(name, f"more than one entry claims this name: {_names(paths)}; keep one")
        path = paths[0]
        try:
            self._check_link(path)
            if _is_model_file(path):
                return ModelEntry(name, ModelConfig(), (self._version(1, path, path if isdir(path) else None),))
            return self._folder(name, path)
        except OSError as error:
            where = Path(error.filename or path)
            raise RepositoryError(self._shown(where), _reason(error)) from None

    def _folder(self, name: str, folder: Path) -> ModelEntry:
        config = ModelConfig()
        mark(one_line(name))
        if lexists(file := folder / SETTINGS):
            self._check_link(file)
            self._check_settings(file)
            config = self._settings(file)
        else:
            # Who removes it must not bring the defaults about.
            self._bounds.check_absent(file)

        entries = _visible(folder)
        numbered = {p.name: p for p in entries if re.fullmatch(r"[0-9]+", p.name) and not isfile(p)}
        if wrong := [p for n, p in numbered.items() if not _VERSION.fullmatch(n)]:
            allowed = "a whole number of 1 or more without leading zeros"
            raise RepositoryError(name, f"can't be versions: {_names(wrong)}; allowed: {allowed}")
        versions = {int(n): p for n, p in numbered.items()}
        unversioned = [p for p in entries if _is_model_file(p)]
        if versions and unversioned:
            numbers = listed(sorted(versions))
            problem = f"holds versions ({numbers}) and model files next to them ({_names(unversioned)})"
            raise RepositoryError(name, f"{problem}; keep one kind")
        if not versions:
            versions = {1: folder}
        picked = _picked(name, config.versions, sorted(versions))
        return ModelEntry(name, config, tuple(self._version_in(v, versions[v]) for v in picked))

    def _version_in(self, version: int, folder: Path) -> VersionFile:
        self._check_link(folder)
        entries = _visible(folder)
        models = [p for p in entries if _is_model_file(p)]
        # The files that TensorFlow writes next to a saved_model.pb end in .pb, too.
        chosen = [p for p in models if p.stem == "model"] or [p for p in models if p.name == _SAVED] or models
        if len(chosen) > 1:
            raise RepositoryError(self._shown(folder), f"holds several model files: {_names(chosen)}; keep one")
        if not chosen:
            expected = "<version>/model.<ext> or model.<ext>" if folder.parent == self.root else "model.<ext>"
            extensions = listed(f.removeprefix(".") for f in (*FORMATS, _SAVED_MODEL))
            problem = f"holds no model; expected: {expected}, where <ext> is one of {extensions}"
            raise RepositoryError(self._shown(folder), f"{problem}; found: {_names(entries)}")
        # With a saved_model.pb in it, the version's folder itself is the SavedModel.
        return self._version(version, folder if chosen[0].name == _SAVED else chosen[0], folder)

    def _version(self, version: int, main: Path, folder: Path | None) -> VersionFile:
        self._check_link(main)
        file_set = FileSet(main, folder, self._bounds)
        return VersionFile(version, file_set, file_set.look())

    @property
    def _bounds(self) -> Bounds:
        return Bounds(self.root, self.external_links, self.max_model_bytes, self.digests)

    def _check_link(self, path: Path) -> None:
        self._bounds.check_link(path)

    def _check_settings(self, file: Path) -> None:
        # Reading from a pipe would wait for its writer.
        if not isfile(file):
            raise RepositoryError(self._shown(file), "is not a regular file")
        if getsize(file) > _MOST_SETTINGS:
            raise RepositoryError(self._shown(file), f"is larger than {_MOST_SETTINGS} bytes")

    def _settings(self, file: Path) -> ModelConfig:
        if self.digests is None:
            return read(file, self._shown(file))
        content = regular_file.read(file, _MOST_SETTINGS)
        self._bounds.check_digest(file, hashlib.sha256(content).hexdigest())
        try:
            return parse(content.decode(), self._shown(file))
        except UnicodeDecodeError:
            raise RepositoryError(self._shown(file), "is not UTF-8 text") from None

    def _shown(self, path: Path) -> str:
        return self._bounds.shown(path)


def _picked(name: str, policy: VersionSettings, present: Sequence[int]) -> Sequence[int]:
    match policy.policy:
        case "latest":
            return present[-policy.count :]
        case "all":
            return present
        case "listed":
            if absent := sorted(set(policy.listed) - set(present)):
                problem = f"versions.listed names {listed(absent)}, which is absent; present: {listed(present)}"
                raise RepositoryError(f"{name}/{SETTINGS}", problem)
            return sorted(set(policy.listed))


def _expected(repository: Path, model: str) -> str:
    return f"REPOSITORY/MODEL/VERSION/model.onnx, such as {repository / model / '1' / 'model.onnx'}"


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _claim(path: Path) -> str:
    """The model's name that an entry of the root claims, "" if it is no model."""
    mark(one_line(path.name))
    if _is_model_file(path):
        return path.stem
    return path.name if (isdir(path) and path.name != LOST_FOUND) or _is_link_to_nothing(path) else ""


def _is_model_file(path: Path) -> bool:
    # Entries that are not files count too, so that they get an error of their own instead of being overlooked.
    if path.suffix == _SAVED_MODEL:
        return lexists(path / _SAVED)
    return path.suffix in FORMATS and lexists(path) and not isdir(path)


def _is_link_to_nothing(path: Path) -> bool:
    return islink(path) and not exists(path)


def _names(paths: Sequence[Path]) -> str:
    return listed(p.name + "/" if isdir(p) else p.name for p in paths)


def _reason(error: OSError) -> str:
    return f"can't be read: {error.strerror}" if error.strerror else "can't be read"
