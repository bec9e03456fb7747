"""How long the counters of gone versions are still shown: a scrape must have seen their last values.

Pure: time is an argument.
"""

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Grace(Generic[Key]):
    """Shows a count for ``seconds`` from the first scrape that had it as it is now. 0 shows none of what is gone."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # By key: the count, and the time of the first scrape that had it.
        self._shown: dict[Key, tuple[float, float]] = {}

    def shows(self, gone: Mapping[Key, float], now: float) -> frozenset[Key]:
        """Which keys of ``gone``, by their counts, a scrape at ``now`` (monotonic seconds) is still to show.

        One that counts on begins again. A key that is not in ``gone`` is forgotten.
        """
        before = self._shown
        self._shown = {
            key: seen if (seen := before.get(key)) is not None and seen[0] == count else (count, now)
            for key, count in gone.items()
        }
        return frozenset(key for key, (_, since) in self._shown.items() if now - since < self._seconds)
