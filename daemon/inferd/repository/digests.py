"""A list of the files that may be served, in the format of ``sha256sum``."""

import re
from collections.abc import Mapping
from pathlib import Path

from inferd import regular_file
from inferd.errors import RepositoryError, one_line

_MOST_BYTES = 64 << 20
# With two spaces or, for a file that was read as binary, a space and an asterisk. A name with a backslash or a line
# break is written otherwise, after a backslash: no file of a model has one.
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](?:\./)?(.+)")


def read(path: Path) -> Mapping[str, str]:
    """SHA-256 digests in lower-case hex, by the file's path in the repository. Raises RepositoryError, naming ``path``,
    if it can't be read or a line is none of sha256sum's."""
    try:
        text = regular_file.read(path, _MOST_BYTES).decode()
    except UnicodeDecodeError:
        raise RepositoryError(str(path), "is not UTF-8 text") from None
    except OSError as error:
        raise RepositoryError(str(path), f"can't be read: {error.strerror}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if (match := _LINE.fullmatch(line.removesuffix("\r"))) is None:
            said = one_line(line, 80)
            raise RepositoryError(str(path), f"line {number} is no digest and path as sha256sum writes them: {said}")
        found[match[2]] = match[1].lower()
    return found
