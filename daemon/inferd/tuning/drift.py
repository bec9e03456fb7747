"""Whether service times or load have changed for good since the last tuning."""

from dataclasses import dataclass
from enum import Enum

# A change of service time by this factor calls for tuning again.
_FACTOR = 1.5
# This many consecutive samples have to agree.
_LOOKS = 6


class LoadClass(Enum):
    """How busy the infer requests are: the best settings for single requests differ from those for full load."""

    LIGHT = "light"
    MEDIUM = "medium"
    HEAVY = "heavy"


def load_class(busy: float) -> LoadClass:
    """The class of a pool that is ``busy`` (0..1) on average."""
    if busy < 0.25:
        return LoadClass.LIGHT
    return LoadClass.MEDIUM if busy < 0.75 else LoadClass.HEAVY


@dataclass(frozen=True, slots=True)
class LoadSample:
    """One sample: the learnt service time in nanoseconds, 0 if nothing ran, and the fraction of the pool in use."""

    service_time: float
    busy: float


class Drift:
    """Compares samples with the first one after a tuning."""

    def __init__(self) -> None:
        self._service_time = 0.0
        self._class: LoadClass | None = None
        self._slower = 0
        self._other: LoadClass | None = None
        self._others = 0

    def observe(self, sample: LoadSample) -> str:
        """What has changed for good, in words; "" if nothing has."""
        if not sample.service_time:
            return ""
        now = load_class(sample.busy)
        if self._class is None:
            self._service_time, self._class = sample.service_time, now
            return ""
        ratio = sample.service_time / self._service_time
        self._slower = self._slower + 1 if not 1 / _FACTOR < ratio < _FACTOR else 0
        self._others = self._others + 1 if now is not self._class and now is self._other else 1
        self._other = now
        if self._slower >= _LOOKS:
            return f"a run takes {ratio:.2f} times as long as after the last tuning"
        if now is not self._class and self._others >= _LOOKS:
            return f"the load is {now.value}, and was {self._class.value} after the last tuning"
        return ""
