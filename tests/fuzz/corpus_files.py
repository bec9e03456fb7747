"""The kept corpus: inputs that were the first to cause their kind of response."""

import hashlib
from pathlib import Path

from tests.fuzz import codec_target

FOLDER = Path(__file__).resolve().parent / "corpus"


def read() -> list[bytes]:
    """Seeds and kept inputs."""
    return [*codec_target.seeds(), *(file.read_bytes() for file in sorted(FOLDER.glob("*.bin")))]


def keep(data: bytes) -> None:
    """Add ``data``, under a name of its content."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{hashlib.sha256(data).hexdigest()[:16]}.bin").write_bytes(data)
