"""What a model version is loaded from."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inferd.config.model import ModelConfig
from inferd.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What to load: the version's main file, all files its content depends on, its settings.

    ``cpu_threads`` is its part of the CPU budget, 0 where it may have all. ``inline`` says whether runs are to be
    computed where they start, for those that may be and whose settings leave it open; None leaves it to warm-up.
    """

    name: str
    version: int
    path: Path
    files: tuple[Path, ...]
    config: ModelConfig
    cpu_threads: int = 0
    inline: bool | None = None

    def misconfigured(self, key: str, problem: str, allowed: str = "") -> ConfigurationError:
        """The error for a key of ``model.toml`` that does not fit the model."""
        return ConfigurationError(f"{self.name}/model.toml", key, problem, allowed)


def fingerprint(source: ModelSource) -> str:
    """The content of all of ``source``'s files, as a SHA-256 in hex. Raises OSError when one can't be read."""
    return hashlib.sha256(json.dumps(digests(source.files)).encode()).hexdigest()


def digests(files: Sequence[Path]) -> list[str]:
    """The SHA-256, in hex, of each of ``files``. Raises OSError when one can't be read."""
    found = []
    for file in files:
        with file.open("rb") as stream:
            found.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return found
