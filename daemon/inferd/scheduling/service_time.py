"""How long a run takes, learnt for each number of rows."""

from bisect import bisect_left, insort

_SMOOTHING = 0.1
# With each run, the fastest and the slowest run seen are forgotten by this much, so that a model that has become
# slower, or fast again, is believed.
_FORGETTING = 0.01


class ServiceTimes:
    """Nanoseconds from start to completion, by rows of the run; 0 means unknown."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._mean: dict[int, float] = {}
        self._fastest: dict[int, float] = {}
        self._slowest = 0.0

    def seed(self, rows: int, duration: float) -> None:
        """A duration measured beforehand; it replaces anything learnt about ``rows`` so far."""
        if duration > 0:
            if rows not in self._mean:
                insort(self._sizes, rows)
            self._mean[rows] = self._fastest[rows] = float(duration)
            self._slowest = max(self._slowest, float(duration))

    def learn(self, rows: int, duration: float) -> None:
        """A run of ``rows`` took ``duration``."""
        if rows not in self._mean:
            self.seed(rows, duration)
            return
        self._mean[rows] += _SMOOTHING * (duration - self._mean[rows])
        fastest = self._fastest[rows] or duration
        self._fastest[rows] = min(duration, fastest + _FORGETTING * (duration - fastest))
        self._slowest = max(duration, self._slowest + _FORGETTING * (duration - self._slowest))

    def learn_at_least(self, rows: int, duration: float) -> None:
        """A run of ``rows`` is still running after ``duration``: that does not tell how fast others are."""
        if rows not in self._mean and duration > 0:
            insort(self._sizes, rows)
            self._mean[rows], self._fastest[rows] = float(duration), 0.0
        elif duration > self._mean.get(rows, 0.0):
            self._mean[rows] += _SMOOTHING * (duration - self._mean[rows])

    @property
    def sizes(self) -> list[int]:
        """The numbers of rows with known durations, ascending."""
        return self._sizes

    @property
    def slowest(self) -> float:
        """The duration of the slowest run seen, of any size; 0 for none."""
        return self._slowest

    def expected(self, rows: int) -> float:
        """The average duration of a run of ``rows``."""
        known = self._mean.get(rows)
        return known if known is not None else self._between(self._mean, rows)

    def fastest(self, rows: int) -> float:
        """The duration of a run of ``rows`` at best: there is no hope for less."""
        known = self._fastest.get(rows)
        return known if known is not None else self._between(self._fastest, rows)

    def _between(self, times: dict[int, float], rows: int) -> float:
        """An estimate: between known sizes in proportion; beyond the largest each row costs the same."""
        if not self._sizes:
            return 0.0
        place = bisect_left(self._sizes, rows)
        if place == len(self._sizes):
            largest = self._sizes[-1]
            return times[largest] * rows / largest
        if place == 0:
            return times[self._sizes[0]]
        low, high = self._sizes[place - 1], self._sizes[place]
        return times[low] + (times[high] - times[low]) * (rows - low) / (high - low)
