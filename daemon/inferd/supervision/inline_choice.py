"""Whether the runs of a model are computed where they start, as what is seen of them says; it knows no clock.

What was measured at a load may have been measured on a busy machine, so it does not decide for ever. Other work only
makes runs look slower: one quick measurement proves that runs are quick, and slow ones prove nothing before most of
many looks agree.
"""

from collections import deque
from enum import Enum
from statistics import median

# Seconds between looks, and how many looks at runs must agree before they are handed over.
BETWEEN = 1.0
LOOKS = 15
# Runs are handed over where they take this many times the most that inline runs may take when they are chosen.
SLOW = 3.0
# Runs that take longer than this many times that, hand-overs included, won't be quick enough without.
_WORTH_A_TRY = 20.0
# Seconds until inline runs are tried: at first, doubled by each try that is in vain, and at most.
FIRST_TRY = 30.0
LONGEST = 600.0
# Each time that runs were inline and had to be handed over, the next try is so many times as far away.
_LESS_TRUST = 4


class Wish(Enum):
    """What to do now: measure inline runs, and keep them if they are quick; or hand runs over again."""

    TRY_INLINE = "try inline"
    HAND_OVER = "hand over"


class InlineChoice:
    """Of one model version, from time ``now`` on. Runs may be inline that take at most ``most`` nanoseconds.

    However runs behave, they are handed over again at most once in the first :data:`LONGEST` seconds, twice in the
    first five times that, three times in the first 21 times that, and so on.
    """

    def __init__(self, most: float, now: float) -> None:
        self._most = most
        self._took: deque[float] = deque(maxlen=LOOKS)
        self._runs = 0
        self._looked = now
        self._in_vain = 0
        self._left = 0
        self._next_try = now + FIRST_TRY

    def look(self, now: float, runs: int, took: float, *, inline: bool) -> Wish | None:
        """``runs`` have ended so far, of which the last few took about ``took`` nanoseconds each. Times in seconds."""
        if now - self._looked < BETWEEN or runs == self._runs:
            return None
        self._looked, self._runs = now, runs
        if not inline:
            return Wish.TRY_INLINE if now >= self._next_try and took <= _WORTH_A_TRY * self._most else None
        self._took.append(took)
        slow = len(self._took) == LOOKS and median(self._took) > SLOW * self._most
        return Wish.HAND_OVER if slow else None

    def tried(self, now: float, wish: Wish, *, inline: bool) -> None:
        """What was wished for was done, or was not to be: runs are ``inline`` now or not."""
        self._took.clear()
        self._runs = 0
        self._left += wish is Wish.HAND_OVER and not inline
        self._in_vain = self._in_vain + 1 if wish is Wish.TRY_INLINE and not inline else 0
        wait = min(LONGEST, FIRST_TRY * 2.0 ** min(self._in_vain, 10))
        if self._left:
            wait = max(wait, LONGEST * float(_LESS_TRUST) ** min(self._left - 1, 10))
        self._next_try = now + wait
