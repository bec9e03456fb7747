"""Decides whether a model version may be shown as ready, from how its runs end and what its probes say.

A run that fails may be its client's fault, and one that hangs may be the only one: what real runs do badly only
makes a model suspect, and a probe then tells. One that can run nothing at all, because runs that hang hold all there
is, is not ready for as long as that lasts. Time is an argument, in seconds of any clock.
"""

from dataclasses import dataclass
from enum import Enum

from inferd.health.liveness import PROBE_TRUST, ProbeOutcome, ProbeTrust

# A probe may take so many times what a run does: others may be queued, and the machine busy.
_RUNS = 20
# Who waited that part of the time has waited all of it, give or take what clocks and timers do.
_ALL_OF_IT = 0.9
# So many runs that fail with none between that ends well make a model suspect.
_IN_A_ROW = 3


class HealthState(Enum):
    """What is thought of a model version. It takes requests unless it has FAILED."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    FAILED = "failed"


class HealthSignal(Enum):
    """A run ended well; real runs give reason to doubt; a probe that should have ended well did not."""

    OK = "ok"
    SUSPICIOUS = "suspicious"
    PROBE_FAILED = "probe_failed"


TRANSITIONS: dict[tuple[HealthState, HealthSignal], HealthState] = {
    (HealthState.HEALTHY, HealthSignal.OK): HealthState.HEALTHY,
    (HealthState.HEALTHY, HealthSignal.SUSPICIOUS): HealthState.SUSPECT,
    (HealthState.HEALTHY, HealthSignal.PROBE_FAILED): HealthState.SUSPECT,
    (HealthState.SUSPECT, HealthSignal.OK): HealthState.HEALTHY,
    (HealthState.SUSPECT, HealthSignal.SUSPICIOUS): HealthState.SUSPECT,
    (HealthState.SUSPECT, HealthSignal.PROBE_FAILED): HealthState.FAILED,
    (HealthState.FAILED, HealthSignal.OK): HealthState.HEALTHY,
    (HealthState.FAILED, HealthSignal.SUSPICIOUS): HealthState.FAILED,
    (HealthState.FAILED, HealthSignal.PROBE_FAILED): HealthState.FAILED,
}


class UnreadyReason(Enum):
    """What keeps a version from being shown as ready."""

    LOST = "device_lost"
    HANGING = "hanging"
    FAILING = "failing"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class HealthObservation:
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
    """Seconds: ``probe_interval`` until a model that had nothing to do is sent a probe (0: never is),
    ``retry_interval`` between two of them in doubt, ``probe_timeout`` with one; ``hang_grace`` until a model that runs
    which hang leave nothing to run on is not ready: most such runs end at once when they are cancelled."""

    probe_interval: float = 30.0
    retry_interval: float = 5.0
    probe_timeout: float = 10.0
    hang_grace: float = 0.5


class HealthTracker:
    """The state of one version and the reason for it, "" while it is healthy.

    Without a device it has failed for good: whatever is loaded in its place has a health of its own.
    """

    def __init__(self, rules: HealthRules, now: float) -> None:
        self.state = HealthState.HEALTHY
        self.reason = ""
        self._failure_reason: UnreadyReason | None = None
        self.trust = ProbeTrust.PROVING
        self._rules = rules
        self._last = HealthObservation()
        self._gone = False
        # Real runs that failed with none between that ended well.
        self._in_a_row = 0
        # Warm-up has just shown that it runs.
        self._well = now
        self._probed_at: float | None = None
        self._well_when_probed = 0
        self._probing = False

    def look(self, now: float, observation: HealthObservation) -> bool:
        """Take in what is seen. True where a probe is to be sent: :meth:`ended` tells what became of it."""
        before, self._last = self._last, observation
        if observation.gone:
            self._gone, self.state, self.reason = True, HealthState.FAILED, observation.gone
            self._failure_reason = UnreadyReason.HANGING if observation.hangs else UnreadyReason.LOST
        if self._gone:
            return False
        well, failed = observation.well - before.well, observation.failed - before.failed
        self._in_a_row = 0 if well else self._in_a_row + failed
        if observation.hung > before.hung:
            self._apply(HealthSignal.SUSPICIOUS, "a run hung")
        if self._in_a_row >= _IN_A_ROW and failed:
            self._apply(HealthSignal.SUSPICIOUS, f"{self._in_a_row} runs in a row failed")
        if well:
            self._well = now
            self._apply(HealthSignal.OK)
        if not self._due(now, observation):
            return False
        self._probing, self._probed_at, self._well_when_probed = True, now, observation.well
        return True

    @property
    def unready_reason(self) -> UnreadyReason | None:
        """What keeps it from being shown as ready; None while nothing does."""
        if self.state is HealthState.FAILED:
            return self._failure_reason
        return UnreadyReason.HANGING if self._stalled else None

    @property
    def unready_text(self) -> str:
        """The same in words, "" while nothing does."""
        if self.state is HealthState.FAILED:
            return self.reason
        return "runs that hang hold every infer request of it" if self._stalled else ""

    @property
    def until_unready(self) -> float | None:
        """Seconds until what was seen last makes it unready, should it go on; None where it does not."""
        stalled = self._last.stalled
        return None if stalled is None or self._stalled else self._rules.hang_grace - stalled

    @property
    def _stalled(self) -> bool:
        return self._last.stalled is not None and self._last.stalled >= self._rules.hang_grace

    def probe_timeout(self, observation: HealthObservation) -> float:
        """Seconds that a probe may take."""
        return max(self._rules.probe_timeout, _RUNS * observation.run)

    def ended(self, now: float, outcome: ProbeOutcome) -> None:
        """The probe that :meth:`look` asked for has ended."""
        probed_at, trusted = self._probed_at, self.trust is ProbeTrust.TRUSTED
        if not self._probing or probed_at is None:
            return
        self._probing = False
        self.trust = PROBE_TRUST[self.trust, outcome]
        if self._gone:
            return
        if outcome is ProbeOutcome.OK:
            self._well = now
            self._apply(HealthSignal.OK)
        elif outcome is ProbeOutcome.FAILED and trusted:
            self._apply(
                HealthSignal.PROBE_FAILED,
                "inferences on made-up input fail, which ended well before",
                UnreadyReason.FAILING,
            )
        elif outcome is ProbeOutcome.UNANSWERED and self._silent(now, probed_at):
            silent = f"no answer to an inference on made-up input for {now - probed_at:.0f} s"
            self._apply(HealthSignal.PROBE_FAILED, silent, UnreadyReason.SILENT)

    def _silent(self, now: float, probed_at: float) -> bool:
        """Whether nothing at all came of it; one that found the queue full says nothing."""
        return (
            now - probed_at >= _ALL_OF_IT * self.probe_timeout(self._last) and self._last.well == self._well_when_probed
        )

    def _due(self, now: float, observation: HealthObservation) -> bool:
        if self._probing or not self._rules.probe_interval or self.trust is ProbeTrust.UNTESTABLE:
            return False
        if self._probed_at is None:
            # Whether it runs on made-up input at all is to be known before it is in doubt.
            return True
        if self.state is not HealthState.HEALTHY:
            return now - self._probed_at >= self._rules.retry_interval
        # Whoever has something to do is judged by how that ends.
        return not observation.busy and now - max(self._well, self._probed_at) >= self._rules.probe_interval

    def _apply(self, signal: HealthSignal, reason: str = "", unready_reason: UnreadyReason | None = None) -> None:
        self.state = TRANSITIONS[self.state, signal]
        self._failure_reason = unready_reason or self._failure_reason
        if signal is HealthSignal.OK:
            self.reason, self._in_a_row = "", 0
        else:
            self.reason = reason if signal is HealthSignal.PROBE_FAILED or not self.reason else self.reason
