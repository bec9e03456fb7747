"""Files that appear under their name only when they are complete, whatever happens meanwhile."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

# What a writer that crashed leaves behind.
UNFINISHED = ".part"


def write(file: Path, *parts: bytes | memoryview) -> None:
    """Put ``parts`` one after the other in place of ``file``, readable by this user alone. Raises OSError.

    Its folder has to be there; what was under the name stays until then.
    """
    descriptor, name = tempfile.mkstemp(dir=file.parent, suffix=UNFINISHED)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            # Without it a power cut may leave the new name on blocks never written.
            os.fsync(stream.fileno())
        os.replace(name, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
