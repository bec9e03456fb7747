"""What a model version is loaded from."""

from dataclasses import dataclass
from pathlib import Path

from inferd.config.model import ModelConfig
from inferd.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What to load: the version's main file, all files its content depends on, its settings."""

    name: str
    version: int
    path: Path
    files: tuple[Path, ...]
    config: ModelConfig

    def misconfigured(self, key: str, problem: str, allowed: str = "") -> ConfigurationError:
        """The error for a key of ``model.toml`` that does not fit the model."""
        return ConfigurationError(f"{self.name}/model.toml", key, problem, allowed)
