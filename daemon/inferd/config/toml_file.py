"""Reads TOML; any problem with the file becomes one sentence that names it."""

import tomllib
from pathlib import Path
from typing import Any

from inferd import regular_file
from inferd.errors import ConfigurationError, one_line

# A key of n parts takes tomllib n * n steps: one of 20,000, a file of 40 kB, took 11 seconds.
_MOST_DOTS = 500


def read(file: Path, source: str) -> dict[str, Any]:
    """Read ``file``, which messages call ``source``. Raises ConfigurationError."""
    try:
        return parse(regular_file.read(file).decode(), source)
    except UnicodeDecodeError:
        raise ConfigurationError(source, "", "not UTF-8 text") from None
    except OSError as error:
        raise ConfigurationError(source, "", error.strerror or "can't be read") from None


def parse(text: str, source: str) -> dict[str, Any]:
    """Parse ``text``; raises ConfigurationError naming ``source``."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.count(".") > _MOST_DOTS:
            raise ConfigurationError(source, "", f"line {number} has more than {_MOST_DOTS} dots")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(source, "", f"not valid TOML: {one_line(str(error))}") from None
    except RecursionError:
        raise ConfigurationError(source, "", "not valid TOML: nested too deeply") from None
    except ValueError:
        # tomllib leaves it to int(), which accepts a few thousand digits.
        raise ConfigurationError(source, "", "not valid TOML: a number is too long") from None
