"""When a model version that has lost a device is reloaded: at once, then at growing intervals, without end."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReloadBackoffRules:
    """Seconds: after ``first``, doubled each time, for ``fast_tries`` attempts, then every ``slow_interval``. After
    ``stable_after`` seconds of success, the next loss starts from ``first`` again."""

    first: float = 1.0
    fast_tries: int = 6
    slow_interval: float = 300.0
    stable_after: float = 600.0


class ReloadBackoff:
    """The reload attempts of one version, across all its losses. Time is an argument, in seconds of any clock."""

    def __init__(self, rules: ReloadBackoffRules) -> None:
        self._rules = rules
        self._tries = 0
        self._next: float | None = None
        self._worked: float | None = None
        self._why = ""

    def due(self, now: float) -> bool:
        """Whether to try at ``now``; the device is lost."""
        if self._next is None:
            if self._worked is not None and now - self._worked >= self._rules.stable_after:
                self._tries = 0
            self._next = now + (self.delay if self._tries else 0.0)
        return now >= self._next

    def tried(self, now: float, why: str = "") -> None:
        """An attempt has ended; ``why`` is the reason that it failed, "" if it succeeded."""
        self._tries += 1
        self._why = why
        self._worked = None if why else now
        self._next = now + self.delay if why else None

    @property
    def status_text(self) -> str:
        """The attempts so far in words, "" before the first failure."""
        if not self._why:
            return ""
        times = "once" if self._tries == 1 else f"{self._tries} times"
        ending = f"next attempts every {self._rules.slow_interval:.0f} s" if self.exhausted else "retrying"
        return f"reloading failed {times}, {ending}: {self._why}"

    @property
    def exhausted(self) -> bool:
        """Whether only slow attempts are left."""
        return self._tries >= self._rules.fast_tries

    @property
    def delay(self) -> float:
        """Seconds before the next attempt, once there was one."""
        return self._rules.slow_interval if self.exhausted else float(self._rules.first * 2 ** (self._tries - 1))
