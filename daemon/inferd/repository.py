"""Finds models and their versions on disk; loads nothing.

Under the root, any mix of::

    <model>/<version>/model.<ext>    versions: folders named 1, 2, 10
    <model>/model.<ext>              version 1
    <model>.<ext>                    version 1

A folder may hold one model file of another name instead of ``model.<ext>``, and a model's
folder a ``model.toml``. The files beside it that a format keeps weights in belong to the
model: ``.bin``, ``.pdiparams``, and for ONNX what else is in its folder, or at the root what
starts with its name, such as ``<model>.onnx.data``. Hidden entries are ignored. Nothing
outside the root is served: a symbolic link may lead elsewhere within it and, unless that is allowed,
no further.

A broken model is found to be so on its own and never keeps another from being served. Its
error names files relative to the root, because clients get to read it.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Not Path's own questions about files: those raise on a link to where this process may not
# look, and one such link would keep every other model from being found.
from os.path import commonpath, exists, getsize, isdir, isfile, islink, lexists, realpath
from pathlib import Path

from inferd.config.daemon import Settings
from inferd.config.model import ModelConfig, Versions, read
from inferd.errors import InferdError, RepositoryError, UnknownModel, listed, one_line

FORMATS = (".xml", ".onnx", ".pb", ".tflite", ".pdmodel")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# 18 digits: a version has to fit the protocol's int64.
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_CONFIG = "model.toml"
_MOST_SETTINGS = 64 << 10
# Every ext4 volume has this folder at its top, and a repository often is a volume of its own.
_NOT_A_MODEL = "lost+found"


@dataclass(frozen=True, slots=True)
class VersionFile:
    """One version on disk: the file to read and, that one first, all files its content depends on.

    ``stamps`` has size, time of change (ns) and inode of each file: they differ when a file was written or replaced.
    """

    version: int
    path: Path
    files: tuple[Path, ...]
    stamps: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model that can be loaded; ``versions`` are those its policy picks, ascending."""

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
    """A folder of models; each call looks at the disk anew.

    At most ``max_models`` can be served, the first by name. ``links_out`` follows symbolic links that lead elsewhere.
    """

    root: Path
    max_models: int = 1024
    links_out: bool = False

    def scan(self) -> Listing:
        """All models; raises RepositoryError, naming the root, when that can't be read."""
        try:
            candidates = self._candidates()
        except OSError as error:
            raise RepositoryError(str(self.root), _reason(error)) from None
        models: list[ModelEntry] = []
        broken: list[BrokenModel] = []
        for place, (name, paths) in enumerate(sorted(candidates.items())):
            try:
                self._check_place(name, place)
                models.append(self._entry(name, paths))
            except InferdError as error:
                broken.append(BrokenModel(one_line(name), error))
        return Listing(tuple(models), tuple(broken))

    def find(self, name: str) -> ModelEntry:
        """The model ``name``, which a client may have made up.

        Raises UnknownModel when there is none, and ConfigurationError or RepositoryError
        when it can't be served.
        """
        if not _NAME.fullmatch(name):
            raise UnknownModel(name)
        try:
            candidates = self._candidates()
        except OSError as error:
            raise RepositoryError(name, f"the model repository {_reason(error)}") from None
        if name not in candidates:
            raise UnknownModel(name)
        self._check_place(name, sum(other < name for other in candidates))
        return self._entry(name, candidates[name])

    def _candidates(self) -> Mapping[str, Sequence[Path]]:
        """The entries at the root that are meant as models, by the name they claim."""
        claims: dict[str, list[Path]] = defaultdict(list)
        for path in _visible(self.root):
            if _is_model_file(path):
                claims[path.stem].append(path)
            elif (isdir(path) and path.name != _NOT_A_MODEL) or _is_link_to_nothing(path):
                claims[path.name].append(path)
        return claims

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
            if isdir(path):
                return self._folder(name, path)
            external = [p for p in _visible(self.root) if p.name.startswith(path.name) and isfile(p)]
            return ModelEntry(name, ModelConfig(), (self._version(1, path, external),))
        except OSError as error:
            where = Path(error.filename or path)
            raise RepositoryError(self._shown(where), _reason(error)) from None

    def _folder(self, name: str, folder: Path) -> ModelEntry:
        config = ModelConfig()
        if lexists(file := folder / _CONFIG):
            self._check_link(file)
            self._check_settings(file)
            config = read(file, self._shown(file))

        entries = _visible(folder)
        numbered = {p.name: p for p in entries if re.fullmatch(r"[0-9]+", p.name) and not isfile(p)}
        if wrong := [p for n, p in numbered.items() if not _VERSION.fullmatch(n)]:
            allowed = "a whole number of 1 or more without leading zeros"
            raise RepositoryError(name, f"can't be versions: {_names(wrong)}; allowed: {allowed}")
        versions = {int(n): p for n, p in numbered.items()}
        unversioned = [p for p in entries if _is_model_file(p)]
        if versions and unversioned:
            problem = f"holds versions ({listed(sorted(versions))}) and model files beside them ({_names(unversioned)})"
            raise RepositoryError(name, f"{problem}; keep one kind")
        if not versions:
            versions = {1: folder}
        picked = _picked(name, config.versions, sorted(versions))
        return ModelEntry(name, config, tuple(self._version_in(v, versions[v]) for v in picked))

    def _version_in(self, version: int, folder: Path) -> VersionFile:
        self._check_link(folder)
        entries = _visible(folder)
        models = [p for p in entries if _is_model_file(p)]
        chosen = [p for p in models if p.stem == "model"] or models
        if len(chosen) > 1:
            raise RepositoryError(self._shown(folder), f"holds several model files: {_names(chosen)}; keep one")
        if not chosen:
            expected = "<version>/model.<ext> or model.<ext>" if folder.parent == self.root else "model.<ext>"
            extensions = listed(f.removeprefix(".") for f in FORMATS)
            problem = f"holds no model; expected: {expected}, where <ext> is one of {extensions}"
            raise RepositoryError(self._shown(folder), f"{problem}; found: {_names(entries)}")
        external = [p for p in entries if isfile(p) and p.name != _CONFIG]
        return self._version(version, chosen[0], external)

    def _version(self, version: int, path: Path, external: Sequence[Path]) -> VersionFile:
        """``external``: the files that hold the weights if the model at ``path`` is ONNX and keeps them outside.

        ONNX names them inside the model and any name will do. One too many costs a compile
        when it changes, one too few would let an old cached blob pass for the new weights.
        """
        beside: Sequence[Path] = ()
        match path.suffix:
            case ".xml":
                beside = (path.with_suffix(".bin"),)
            case ".pdmodel":
                beside = (path.with_suffix(".pdiparams"),)
            case ".onnx":
                beside = [p for p in external if p != path]
        files = (path, *(p for p in beside if lexists(p)))
        for file in files:
            self._check_link(file)
        stats = [file.stat() for file in files]
        return VersionFile(version, path, files, tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in stats))

    def _check_link(self, path: Path) -> None:
        """Raises RepositoryError where ``path``, links followed, is not within the root or not there."""
        # realpath rather than Path.resolve, which raises on a loop of links up to Python 3.12.
        root, target = realpath(self.root), realpath(path)
        if not self.links_out and commonpath((root, target)) != root:
            raise RepositoryError(self._shown(path), "is a symbolic link that leads out of the model repository")
        if not exists(target):
            problem = "is a symbolic link to nothing that can be read" if islink(path) else "can't be read"
            raise RepositoryError(self._shown(path), problem)

    def _check_settings(self, file: Path) -> None:
        # Reading from a pipe would wait for whoever writes to it.
        if not isfile(file):
            raise RepositoryError(self._shown(file), "is no regular file")
        if getsize(file) > _MOST_SETTINGS:
            raise RepositoryError(self._shown(file), f"is larger than {_MOST_SETTINGS} bytes")

    def _shown(self, path: Path) -> str:
        return one_line(str(path.relative_to(self.root)))


def repository_of(settings: Settings) -> Repository:
    """The repository that the daemon's ``settings`` name."""
    return Repository(settings.model_repository, settings.repository_max_models, settings.repository_links_out)


def _picked(name: str, policy: Versions, present: Sequence[int]) -> Sequence[int]:
    match policy.policy:
        case "latest":
            return present[-policy.count :]
        case "all":
            return present
        case "listed":
            if absent := sorted(set(policy.listed) - set(present)):
                problem = f"versions.listed names {listed(absent)}, which is absent; present: {listed(present)}"
                raise RepositoryError(f"{name}/{_CONFIG}", problem)
            return sorted(set(policy.listed))


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _is_model_file(path: Path) -> bool:
    # A link to nothing counts, so that it gets an error of its own rather than being overlooked.
    return path.suffix in FORMATS and (isfile(path) or _is_link_to_nothing(path))


def _is_link_to_nothing(path: Path) -> bool:
    return islink(path) and not exists(path)


def _names(paths: Sequence[Path]) -> str:
    return listed(p.name + "/" if isdir(p) else p.name for p in paths)


def _reason(error: OSError) -> str:
    return f"can't be read: {error.strerror}" if error.strerror else "can't be read"
