"""Files that block their reader, or fill its memory."""

import os
import socket
from pathlib import Path


def listening_socket(path: Path) -> None:
    """A socket's name at ``path``."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def sparse(path: Path) -> None:
    """100 GiB of nothing at ``path``."""
    path.touch()
    os.truncate(path, 100 << 30)
