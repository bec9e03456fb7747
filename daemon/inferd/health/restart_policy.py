"""Decides when a new process must replace this one because it has lost a device for good.

A driver may fail for one process only. So once all quick reloads have failed here, a child process tries the device; if
the child can use it, this process drains and ends, and its supervisor starts another. Time is an argument, in seconds
of any clock.
"""

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Self

from inferd.config.daemon import Settings


class RestartState(Enum):
    """Nothing that a new process could fix; a child tests a device; waiting for the next test; this process ends."""

    RUNNING = "running"
    TESTING = "testing"
    WAITING = "waiting"
    RESTARTING = "restarting"


class RestartEvent(Enum):
    """No device is lost for good; one is; a child could use it, or could not."""

    FOUND = "found"
    LOST = "lost"
    USABLE = "usable"
    UNUSABLE = "unusable"


TRANSITIONS: dict[tuple[RestartState, RestartEvent], RestartState] = {
    (RestartState.RUNNING, RestartEvent.FOUND): RestartState.RUNNING,
    (RestartState.RUNNING, RestartEvent.LOST): RestartState.TESTING,
    # The device came back during the child's test.
    (RestartState.RUNNING, RestartEvent.USABLE): RestartState.RUNNING,
    (RestartState.RUNNING, RestartEvent.UNUSABLE): RestartState.RUNNING,
    (RestartState.TESTING, RestartEvent.FOUND): RestartState.RUNNING,
    (RestartState.TESTING, RestartEvent.LOST): RestartState.TESTING,
    (RestartState.TESTING, RestartEvent.USABLE): RestartState.RESTARTING,
    (RestartState.TESTING, RestartEvent.UNUSABLE): RestartState.WAITING,
    (RestartState.WAITING, RestartEvent.FOUND): RestartState.RUNNING,
    (RestartState.WAITING, RestartEvent.LOST): RestartState.TESTING,
    (RestartState.WAITING, RestartEvent.USABLE): RestartState.WAITING,
    (RestartState.WAITING, RestartEvent.UNUSABLE): RestartState.WAITING,
    (RestartState.RESTARTING, RestartEvent.FOUND): RestartState.RESTARTING,
    (RestartState.RESTARTING, RestartEvent.LOST): RestartState.RESTARTING,
    (RestartState.RESTARTING, RestartEvent.USABLE): RestartState.RESTARTING,
    (RestartState.RESTARTING, RestartEvent.UNUSABLE): RestartState.RESTARTING,
}


@dataclass(frozen=True, slots=True)
class VersionHealth:
    """The devices that one version runs on and those it has lost. ``exhausted``: all its quick reloads failed.
    ``ready``: it answers all the same."""

    devices: frozenset[str]
    lost: frozenset[str] = frozenset()
    exhausted: bool = False
    ready: bool = True


@dataclass(frozen=True, slots=True)
class RestartRules:
    """``always`` also ends a process that still serves other models. Seconds: a process runs for at least
    ``min_uptime``, which limits restarts if a device is lost again and again; ``retry_interval`` is the time between
    two child processes."""

    always: bool = False
    min_uptime: float = 600.0
    retry_interval: float = 300.0

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The rules that ``settings`` configure."""
        return cls(always=settings.restart_on_device_loss == "always")


class RestartPolicy:
    """The policy for one process, started at ``began``."""

    def __init__(self, rules: RestartRules, began: float) -> None:
        self.state = RestartState.RUNNING
        self._rules = rules
        self._next = began + rules.min_uptime
        self._attempts = 0

    def look(self, now: float, versions: Collection[VersionHealth]) -> str | None:
        """Take in the health of all ``versions``. Returns the device that a child should test now; :meth:`answered`
        takes the result."""
        lost = lost_for_good(versions)
        spared = not self._rules.always and any(version.ready for version in versions)
        event = RestartEvent.LOST if lost and not spared else RestartEvent.FOUND
        if event is RestartEvent.LOST and now < self._next:
            return None
        before, self.state = self.state, TRANSITIONS[self.state, event]
        if self.state is not RestartState.TESTING or before is RestartState.TESTING:
            return None
        self._attempts += 1
        # Devices take turns: one that is gone from the machine must not block another.
        return lost[self._attempts % len(lost)]

    def answered(self, now: float, *, usable: bool) -> None:
        """Take in the result of the child that :meth:`look` asked for."""
        self.state = TRANSITIONS[self.state, RestartEvent.USABLE if usable else RestartEvent.UNUSABLE]
        self._next = max(self._next, now + self._rules.retry_interval)


def lost_for_good(versions: Collection[VersionHealth]) -> list[str]:
    """The devices that all versions on them have lost, and failed to reload on: if a device works for one version, the
    process is not at fault."""
    devices = sorted({device for version in versions for device in version.devices})
    return [
        device for device in devices if all(v.exhausted and device in v.lost for v in versions if device in v.devices)
    ]
