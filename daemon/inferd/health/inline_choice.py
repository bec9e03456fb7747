"""Whether a model's runs are computed inline, on the thread that starts them, based on observations; without a clock.

A measurement at load time may have been taken on a busy machine, so it is not final. Traffic says when to measure
again, and the fastest of many runs decides: other work can only make runs look slower.
"""

from collections import deque
from statistics import median

# Seconds between looks, and how many looks at inline runs are needed before they are measured.
BETWEEN = 1.0
LOOKS = 15
# Inline runs slower than this many times the limit for choosing them are handed over again.
SLOW = 3.0
# Runs slower than this many times the limit, hand-overs included, would be too slow inline, too.
_WORTH_A_TRY = 20.0
# Seconds until runs are measured: at first, doubled by each measurement without a change, and at most.
FIRST = 30.0
LONGEST = 600.0
# Each time that inline runs had to be handed over again, the wait before the next attempt grows by this factor.
_LESS_TRUST = 4.0
# The limit on both exponents, to avoid overflow.
_STEPS = 10


class InlineChoice:
    """The choice for one model version, from second ``now`` on. Runs of at most ``most`` nanoseconds may become inline.

    Inline runs are handed over again at most once in the first :data:`LONGEST` seconds, twice
    in the first five times that, three times in the first 21 times that, and so on.
    """

    def __init__(self, most: float, now: float) -> None:
        self._most = most
        self._took: deque[float] = deque(maxlen=LOOKS)
        self._runs = 0
        self._looked = now
        self._in_vain = 0
        self._left = 0
        self._not_before = now + FIRST

    def look(self, now: float, runs: int, took: float, *, inline: bool) -> bool:
        """Whether to measure inline runs now. ``runs`` have ended so far on the present path, and the last few took
        about ``took`` nanoseconds each."""
        if now - self._looked < BETWEEN or runs == self._runs:
            return False
        self._looked, self._runs = now, runs
        if not inline:
            return now >= self._not_before and took <= _WORTH_A_TRY * self._most
        self._took.append(took)
        return now >= self._not_before and len(self._took) == LOOKS and median(self._took) > self.most(inline=True)

    def most(self, *, inline: bool) -> float:
        """The limit, in nanoseconds of the fastest inline run, for runs to stay or to become inline."""
        return SLOW * self._most if inline else self._most

    def measured(self, now: float, *, before: bool, inline: bool) -> None:
        """Runs were measured, or could not be: they are ``inline`` now, and were or were not ``before``."""
        self._took.clear()
        self._runs = 0
        self._in_vain = self._in_vain + 1 if before == inline else 0
        self._left += before and not inline
        wait = min(LONGEST, FIRST * 2.0 ** min(self._in_vain, _STEPS)) if self._in_vain else 0.0
        if self._left and not inline:
            wait = max(wait, LONGEST * _LESS_TRUST ** min(self._left - 1, _STEPS))
        self._not_before = now + wait
