"""Notices changes of the model repository by looking at it again and again."""

import structlog

from inferd.errors import RepositoryError
from inferd.repository.find import ModelEntry, Repository

log = structlog.get_logger("inferd.repository.watch")

# The result of a look: all models, and the broken ones with their errors.
_Snapshot = tuple[tuple[ModelEntry, ...], tuple[tuple[str, str], ...]]


class Watch:
    """Looks on request. ``changed`` blocks on the disk."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._before: _Snapshot | None = None
        self._reported: _Snapshot | None = None
        self._complained = False

    def changed(self) -> bool:
        """Whether the repository differs from when this was last true, or from the first look.

        Two looks in a row must see the same: files that are still being copied must not be loaded.
        """
        try:
            listing = self._repository.scan()
        except RepositoryError as error:
            if not self._complained:
                log.error("model repository not read", problem=str(error))
            self._complained = True
            return False
        self._complained = False
        snapshot = listing.models, tuple((broken.name, str(broken.error)) for broken in listing.broken)
        if self._reported is None:
            self._reported = snapshot
        settled, self._before = snapshot == self._before, snapshot
        if not settled or snapshot == self._reported:
            return False
        self._reported = snapshot
        return True
