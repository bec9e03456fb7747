"""Decides whether a model version may be shown as ready, from how its runs end and what its canaries say.

A run that fails may be its client's fault, and one that hangs may be the only one: what real runs do badly only
makes a model suspect, and a canary then tells. One that can run nothing at all, because runs that hang hold all there
is, is not ready for as long as that lasts. Time is an argument, in seconds of any clock.
"""

from dataclasses import dataclass
from enum import Enum

from inferd.supervision.vitality import TRUST, Ending, Trust

# A canary may take so many times what a run does: others may be queued, and the machine busy.
_RUNS = 20
# Who waited that part of the time has waited all of it, give or take what clocks and timers do.
_ALL_OF_IT = 0.9
# So many runs that fail with none between that ends well make a model suspect.
_IN_A_ROW = 3


class Standing(Enum):
    """What is thought of a model version. It takes requests unless it has FAILED."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    FAILED = "failed"


class Sign(Enum):
    """A run ended well; real runs give reason to doubt; a canary that should have ended well did not."""

    WELL = "well"
    DOUBT = "doubt"
    BAD = "bad"


STANDINGS: dict[tuple[Standing, Sign], Standing] = {
    (Standing.HEALTHY, Sign.WELL): Standing.HEALTHY,
    (Standing.HEALTHY, Sign.DOUBT): Standing.SUSPECT,
    (Standing.HEALTHY, Sign.BAD): Standing.SUSPECT,
    (Standing.SUSPECT, Sign.WELL): Standing.HEALTHY,
    (Standing.SUSPECT, Sign.DOUBT): Standing.SUSPECT,
    (Standing.SUSPECT, Sign.BAD): Standing.FAILED,
    (Standing.FAILED, Sign.WELL): Standing.HEALTHY,
    (Standing.FAILED, Sign.DOUBT): Standing.FAILED,
    (Standing.FAILED, Sign.BAD): Standing.FAILED,
}


class Ailment(Enum):
    """What keeps a version from being shown as ready."""

    LOST = "device_lost"
    HANGING = "hanging"
    FAILING = "failing"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen of a version: runs that have ended well, failed and hung since it was loaded, whether it has
    anything to do, the seconds that a run takes, why no device of it is left, "" while one is, and whether that is
    because runs hang there; and for how many seconds runs that hang have held all it could run on, None while they do
    not."""

    well: int = 0
    failed: int = 0
    hung: int = 0
    busy: bool = False
    run: float = 0.0
    gone: str = ""
    hangs: bool = False
    stalled: float | None = None


@dataclass(frozen=True, slots=True)
class HealthRules:
    """Seconds: ``quiet`` until a model that had nothing to do is sent a canary (0: never is), ``again`` between two
    of them in doubt, ``patience`` with one; ``grace`` until a model that runs which hang leave nothing to run on is not
    ready: most such runs end at once when they are cancelled."""

    quiet: float = 30.0
    again: float = 5.0
    patience: float = 10.0
    grace: float = 0.5


class Health:
    """One version's standing and the reason for it, "" while it is healthy.

    Without a device it has failed for good: whatever is loaded in its place has a health of its own.
    """

    def __init__(self, rules: HealthRules, now: float) -> None:
        self.standing = Standing.HEALTHY
        self.reason = ""
        self._failed_of: Ailment | None = None
        self.trust = Trust.PROVING
        self._rules = rules
        self._seen = Sight()
        self._gone = False
        # Real runs that failed with none between that ended well.
        self._in_a_row = 0
        # Warm-up has just shown that it runs.
        self._well = now
        self._asked: float | None = None
        self._well_when_asked = 0
        self._in_flight = False

    def look(self, now: float, sight: Sight) -> bool:
        """Take in what is seen. True where a canary is to be sent: :meth:`ended` tells what became of it."""
        before, self._seen = self._seen, sight
        if sight.gone:
            self._gone, self.standing, self.reason = True, Standing.FAILED, sight.gone
            self._failed_of = Ailment.HANGING if sight.hangs else Ailment.LOST
        if self._gone:
            return False
        well, failed = sight.well - before.well, sight.failed - before.failed
        self._in_a_row = 0 if well else self._in_a_row + failed
        if sight.hung > before.hung:
            self._take(Sign.DOUBT, "a run hung")
        if self._in_a_row >= _IN_A_ROW and failed:
            self._take(Sign.DOUBT, f"{self._in_a_row} runs in a row failed")
        if well:
            self._well = now
            self._take(Sign.WELL)
        if not self._due(now, sight):
            return False
        self._in_flight, self._asked, self._well_when_asked = True, now, sight.well
        return True

    @property
    def ailment(self) -> Ailment | None:
        """What keeps it from being shown as ready; None while nothing does."""
        if self.standing is Standing.FAILED:
            return self._failed_of
        return Ailment.HANGING if self._stalled else None

    @property
    def unready(self) -> str:
        """The same in words, "" while nothing does."""
        if self.standing is Standing.FAILED:
            return self.reason
        return "runs that hang hold every infer request of it" if self._stalled else ""

    @property
    def until_unready(self) -> float | None:
        """Seconds until what was seen last makes it unready, should it go on; None where it does not."""
        stalled = self._seen.stalled
        return None if stalled is None or self._stalled else self._rules.grace - stalled

    @property
    def _stalled(self) -> bool:
        return self._seen.stalled is not None and self._seen.stalled >= self._rules.grace

    def patience(self, sight: Sight) -> float:
        """Seconds that a canary may take."""
        return max(self._rules.patience, _RUNS * sight.run)

    def ended(self, now: float, ending: Ending) -> None:
        """The canary that :meth:`look` asked for has ended."""
        asked, trusted = self._asked, self.trust is Trust.TRUSTED
        if not self._in_flight or asked is None:
            return
        self._in_flight = False
        self.trust = TRUST[self.trust, ending]
        if self._gone:
            return
        if ending is Ending.WELL:
            self._well = now
            self._take(Sign.WELL)
        elif ending is Ending.FAILED and trusted:
            self._take(Sign.BAD, "inferences on made-up input fail, which ended well before", Ailment.FAILING)
        elif ending is Ending.UNANSWERED and self._silent(now, asked):
            silent = f"no answer to an inference on made-up input for {now - asked:.0f} s"
            self._take(Sign.BAD, silent, Ailment.SILENT)

    def _silent(self, now: float, asked: float) -> bool:
        """Whether nothing at all came of it; one that found the queue full says nothing."""
        return now - asked >= _ALL_OF_IT * self.patience(self._seen) and self._seen.well == self._well_when_asked

    def _due(self, now: float, sight: Sight) -> bool:
        if self._in_flight or not self._rules.quiet or self.trust is Trust.UNTESTABLE:
            return False
        if self._asked is None:
            # Whether it runs on made-up input at all is to be known before it is in doubt.
            return True
        if self.standing is not Standing.HEALTHY:
            return now - self._asked >= self._rules.again
        # Whoever has something to do is judged by how that ends.
        return not sight.busy and now - max(self._well, self._asked) >= self._rules.quiet

    def _take(self, sign: Sign, reason: str = "", ailment: Ailment | None = None) -> None:
        self.standing = STANDINGS[self.standing, sign]
        self._failed_of = ailment or self._failed_of
        if sign is Sign.WELL:
            self.reason, self._in_a_row = "", 0
        else:
            self.reason = reason if sign is Sign.BAD or not self.reason else self.reason
