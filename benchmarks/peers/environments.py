"""A virtual environment for each peer, with the packages that its requirements.txt pins."""

import hashlib
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent


class NotInstalled(Exception):
    """A peer that cannot be installed here, and why."""


def python_of(peer: str, root: Path, report: Callable[[str], None]) -> Path:
    """The interpreter of ``peer``'s environment below ``root``, which is made first if it is not up to date.

    Raises NotInstalled with pip's own reason.
    """
    pins = HERE / peer / "requirements.txt"
    folder = root / peer / ".venv"
    stamp, wanted = folder / "pins", hashlib.sha256(sys.version.encode() + pins.read_bytes()).hexdigest()
    python = folder / "bin" / "python"
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    report(f"installing {peer} into {folder}; the first time this takes a minute or two")
    venv.create(folder, with_pip=True, clear=True)
    command = [python, "-m", "pip", "install", "--quiet", "--requirement", pins]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["pip gave no reason"]
        raise NotInstalled(lines[-1].removeprefix("ERROR: "))
    stamp.write_text(wanted)
    return python


def version_of(peer: str) -> str:
    """The version of ``peer`` that its requirements.txt pins."""
    for line in (HERE / peer / "requirements.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        if name == peer:
            return version
    raise ValueError(f"{peer}/requirements.txt does not pin {peer}")
