"""Files that appear under their name only when they are complete, whatever happens meanwhile."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

# The temporary file of a writer that crashed.
UNFINISHED = ".part"


def write(file: Path, *parts: bytes | memoryview) -> None:
    """Replace ``file`` with ``parts`` one after another, readable by this user alone. Raises OSError.

    Its folder must exist; the old content stays until the new is complete.
    """
    descriptor, name = tempfile.mkstemp(dir=file.parent, suffix=UNFINISHED)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            # Without this a power cut may leave the new name on blocks never written.
            os.fsync(stream.fileno())
        os.replace(name, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
