"""Decides when this process makes way for a fresh one, because a device is lost to it for good.

A driver may give up on a process, and on that process only. So once loading anew has failed here as often as it is
tried, a child process tries the device; where that can use it, this one drains and ends, and its supervisor starts
another. Time is an argument, in seconds of any clock.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum


class Course(Enum):
    """Nothing is wrong that a fresh process could mend; a child tries a device; none is worth trying for a while;
    this process ends."""

    ON = "on"
    ASKING = "asking"
    WAITING = "waiting"
    OVER = "over"


class Turn(Enum):
    """No device is lost for good; one is; a child could use it, or could not."""

    FOUND = "found"
    LOST = "lost"
    USABLE = "usable"
    UNUSABLE = "unusable"


COURSES: dict[tuple[Course, Turn], Course] = {
    (Course.ON, Turn.FOUND): Course.ON,
    (Course.ON, Turn.LOST): Course.ASKING,
    # The device came back while the child tried it.
    (Course.ON, Turn.USABLE): Course.ON,
    (Course.ON, Turn.UNUSABLE): Course.ON,
    (Course.ASKING, Turn.FOUND): Course.ON,
    (Course.ASKING, Turn.LOST): Course.ASKING,
    (Course.ASKING, Turn.USABLE): Course.OVER,
    (Course.ASKING, Turn.UNUSABLE): Course.WAITING,
    (Course.WAITING, Turn.FOUND): Course.ON,
    (Course.WAITING, Turn.LOST): Course.ASKING,
    (Course.WAITING, Turn.USABLE): Course.WAITING,
    (Course.WAITING, Turn.UNUSABLE): Course.WAITING,
    (Course.OVER, Turn.FOUND): Course.OVER,
    (Course.OVER, Turn.LOST): Course.OVER,
    (Course.OVER, Turn.USABLE): Course.OVER,
    (Course.OVER, Turn.UNUSABLE): Course.OVER,
}


@dataclass(frozen=True, slots=True)
class Plight:
    """What one version is to run on, which of those it has lost, whether loading it anew was tried in vain as often
    as it is done in quick succession, and whether it answers all the same."""

    devices: frozenset[str]
    lost: frozenset[str] = frozenset()
    exhausted: bool = False
    ready: bool = True


@dataclass(frozen=True, slots=True)
class RenewalRules:
    """``always`` also ends a process that answers for other models. Seconds: a process is not ended before it ran for
    ``settled``, so that a device that is lost again and again restarts it no more often than that; ``again`` lie
    between two children."""

    always: bool = False
    settled: float = 600.0
    again: float = 300.0


class Renewal:
    """The course of one process that began at ``began``."""

    def __init__(self, rules: RenewalRules, began: float) -> None:
        self.course = Course.ON
        self._rules = rules
        self._next = began + rules.settled
        self._asked = 0

    def look(self, now: float, versions: Collection[Plight]) -> str | None:
        """Take in how the ``versions`` are. A device where a child is to try it now: :meth:`answered` tells."""
        lost = lost_for_good(versions)
        spared = not self._rules.always and any(version.ready for version in versions)
        turn = Turn.LOST if lost and not spared else Turn.FOUND
        if turn is Turn.LOST and now < self._next:
            return None
        before, self.course = self.course, COURSES[self.course, turn]
        if self.course is not Course.ASKING or before is Course.ASKING:
            return None
        self._asked += 1
        # Each gets its turn: one that is gone from the machine must not stand before one that is not.
        return lost[self._asked % len(lost)]

    def answered(self, now: float, *, usable: bool) -> None:
        """The child that :meth:`look` asked for has ended."""
        self.course = COURSES[self.course, Turn.USABLE if usable else Turn.UNUSABLE]
        self._next = max(self._next, now + self._rules.again)


def lost_for_good(versions: Collection[Plight]) -> list[str]:
    """The devices that every version on them has lost, and was loaded anew on in vain: where one works, the process
    is not what is wrong."""
    devices = sorted({device for version in versions for device in version.devices})
    return [
        device for device in devices if all(v.exhausted and device in v.lost for v in versions if device in v.devices)
    ]
