"""Reads TOML; whatever is wrong with the file becomes one sentence that names it."""

import tomllib
from pathlib import Path
from typing import Any

from inferd.errors import ConfigurationError


def read(file: Path, source: str) -> dict[str, Any]:
    """What ``file`` says; ``source`` is how messages name it. Raises ConfigurationError."""
    try:
        return parse(file.read_text(encoding="utf-8"), source)
    except UnicodeDecodeError:
        raise ConfigurationError(source, "", "not UTF-8 text") from None
    except OSError as error:
        raise ConfigurationError(source, "", error.strerror or "can't be read") from None


def parse(text: str, source: str) -> dict[str, Any]:
    """What ``text`` says; raises ConfigurationError naming ``source``."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(source, "", f"not valid TOML: {error}") from None
