"""How long a run takes, learnt for each number of rows."""

from bisect import bisect_left, insort

_SMOOTHING = 0.1
# The fastest and the slowest run seen are forgotten at this rate a run, so that a model that has become slower,
# or fast again, is believed.
_FORGETTING = 0.01


class ServiceTimes:
    """Nanoseconds from start to completion, by rows of the run; 0 stands for not known yet."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._mean: dict[int, float] = {}
        self._fastest: dict[int, float] = {}
        self._slowest = 0.0

    def seed(self, rows: int, duration: float) -> None:
        """A duration measured beforehand; anything learnt about ``rows`` so far is replaced."""
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
        """A run of ``rows`` goes on after ``duration``: nothing is known of how quick others are."""
        if rows not in self._mean and duration > 0:
            insort(self._sizes, rows)
            self._mean[rows], self._fastest[rows] = float(duration), 0.0
        elif duration > self._mean.get(rows, 0.0):
            self._mean[rows] += _SMOOTHING * (duration - self._mean[rows])

    @property
    def sizes(self) -> list[int]:
        """The numbers of rows that something is known about, ascending."""
        return self._sizes

    @property
    def slowest(self) -> float:
        """What the slowest run seen took, whatever its rows; 0 for none."""
        return self._slowest

    def expected(self, rows: int) -> float:
        """What a run of ``rows`` takes on average."""
        known = self._mean.get(rows)
        return known if known is not None else self._between(self._mean, rows)

    def fastest(self, rows: int) -> float:
        """What a run of ``rows`` takes when all goes well: below it, hope is in vain."""
        known = self._fastest.get(rows)
        return known if known is not None else self._between(self._fastest, rows)

    def _between(self, times: dict[int, float], rows: int) -> float:
        """What is not known: between known sizes in proportion; beyond the largest each row costs the same."""
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
