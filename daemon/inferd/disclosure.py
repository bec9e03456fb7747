"""What clients may read of an error: no path on this machine, no place in source code.

OpenVINO, the C++ library and the system name files by their full paths. Clients and readers of the repository index
get a file's own name, or its place below a folder known to both sides; the log keeps the full text.
"""

import os
import re
from pathlib import PurePath

from inferd.errors import (
    ConfigurationError,
    InferdError,
    InferenceFailed,
    LoadFailed,
    ModelUnavailable,
    RepositoryError,
    RolloutRejected,
    SequenceLost,
)

# These carry text from other sources. All other text is inferd's own, or the client's, which may read it
# unchanged.
_OTHERS_WORDS = (
    ConfigurationError,
    InferenceFailed,
    LoadFailed,
    ModelUnavailable,
    RolloutRejected,
    RepositoryError,
    SequenceLost,
)

# The place that raised a message, as OpenVINO, its plugins and Python write it.
_SOURCE = re.compile(
    r"(?:\b(?:Exception from|Caught exception:|at|in|from)\s+)?"
    r"[^\s'\"()\[\],;]+\.(?:cpp|cc|cxx|c|hpp|hh|hxx|h|inl|inc|cl|cu|py)(?::\d+)+:?(?=[\s'\"()\[\],;]|$)"
)
_QUOTED = re.compile(r"""(?P<quote>['"`])(?P<path>(?:file:/*|~[\w.-]*)?/[^'"`\n]*)(?P=quote)""")
# Not after a word, as in "requests/s", nor inside an address.
_BARE = re.compile(
    r"(?P<address>\b(?!file:)[a-z][a-z0-9+.-]*://\S+)"
    r"|(?<![\w.~/-])(?:file:/*|~[\w.-]*)?/[^\s'\"`()\[\]{}<>|,;:]+"
)
# The names of operations and tensors look like paths, too, such as "/encoder/layer.0/Add". Those of files begin with a
# folder that machines have, or end in an extension.
_FOLDERS = (
    "app bin boot build data dev etc home lib lib64 media mnt models nix opt proc repository root run sbin srv "
    "sys tmp usr var workspace"
)
_ROOTS = frozenset((*_FOLDERS.split(), *os.listdir("/")))
_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9_]{0,11}$")


def without_host_paths(text: str, near: PurePath | None = None) -> str:
    """``text`` with each file of this machine reduced to its own name, and without places in source code.

    Files of any name in the folders that ``near`` lies in are named relative to the innermost of them.
    """
    if near is not None:
        for folder in near.parents:
            if len(folder.parts) > 1:
                text = text.replace(f"{folder}/", "")
    if "/" not in text and not _SOURCE.search(text):
        return text
    text = re.sub(r"[ \t]{2,}", " ", _SOURCE.sub("", text)).strip()
    text = _QUOTED.sub(lambda found: f"{found['quote']}{_name(found['path'])}{found['quote']}", text)
    return _BARE.sub(lambda found: found[0] if found["address"] else _name(found[0]), text)


def client_message(error: InferdError) -> str:
    """The sentence of ``error`` as a client may read it."""
    return without_host_paths(str(error)) if isinstance(error, _OTHERS_WORDS) else str(error)


def _name(path: str) -> str:
    """The last part of ``path`` if it names a file; otherwise ``path`` itself."""
    parts = [part for part in path.split("/") if part]
    if not parts:
        return path
    of_a_file = path.startswith(("~", "file:")) or parts[0] in _ROOTS or _EXTENSION.search(parts[-1])
    return parts[-1] if of_a_file else path
