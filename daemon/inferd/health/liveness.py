"""The watchdog's part of a version's health: since when it has owed an answer. Time is an argument, in seconds."""

from dataclasses import dataclass

# A look this many times later than planned was itself delayed, so it proves no silence.
_HELD_UP = 2.0


@dataclass(frozen=True, slots=True)
class LivenessRules:
    """Seconds: at most ``look`` between two looks, ``probe_interval`` without a successful run until a probe is sent,
    ``limit`` of silence at most."""

    look: float
    probe_interval: float
    limit: float

    @classmethod
    def within(cls, watchdog: float) -> "LivenessRules":
        """Rules for a watchdog timeout of ``watchdog`` seconds: four looks in that time, and three chances to answer
        before a model counts as silent."""
        return cls(watchdog / 4, watchdog / 3, watchdog)


class OwedAnswer:
    """Since when one version has owed an answer; ``since`` is None while it owes none."""

    def __init__(self, rules: LivenessRules) -> None:
        self.since: float | None = None
        self._rules = rules
        self._looked: float | None = None

    def look(self, now: float, *, owes: bool, answered: bool) -> None:
        """Take in whether the version ``answered`` since the last look, and ``owes`` an answer now."""
        late = 0.0 if self._looked is None else now - self._looked - self._rules.look
        self._looked = now
        if self.since is not None and late > self._rules.look * (_HELD_UP - 1):
            self.since += late
        if answered or not owes:
            self.since = None
        if owes and self.since is None:
            self.since = now

    def forgive(self) -> None:
        """Forget what it owes."""
        self.since = None
