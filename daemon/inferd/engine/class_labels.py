"""The names of a model's classes: labels.txt in its version's folder, one a line, the first for index 0."""

from inferd import regular_file
from inferd.engine.source import ModelSource
from inferd.errors import LoadFailed

FILE = "labels.txt"


def read(source: ModelSource) -> tuple[str, ...]:
    """The labels of ``source``, empty without the file. Raises LoadFailed if it is there and can't be read as UTF-8."""
    folder = source.file_set.folder
    if folder is None:
        return ()
    try:
        return tuple(regular_file.read(folder / FILE).decode().splitlines())
    except FileNotFoundError:
        return ()
    except UnicodeDecodeError:
        raise LoadFailed(source.name, source.version, f"{FILE} is not UTF-8") from None
    except OSError as error:
        raise LoadFailed(source.name, source.version, f"{FILE} can't be read: {error.strerror}") from error
