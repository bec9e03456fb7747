"""One version's health: whether it is ready, suspect, or owes an answer, and when to send it a probe.

A failed run may be its client's fault, and a hung run may be the only one: failures of clients' runs only make a
version suspect, and a probe then decides. A version whose infer requests are all held by hung runs is unready for as
long as that lasts. A version with work to do owes an answer, and so does one that fails probes that it used to pass:
the watchdog asks for how long. Time is an argument, in seconds of any clock.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Self

from inferd.config.daemon import Settings
from inferd.health.liveness import LivenessRules, OwedAnswer
from inferd.health.probes import PROBE_TRUST, ProbeOutcome, ProbeReason, ProbeTrust

# A probe may take this many runs, and a version be silent for as long: requests may be queued, and the machine busy.
_RUNS = 20
# A liveness probe is abandoned after this many times the limit, when the version has long counted as silent.
_GIVEN_UP = 3.0
# A wait of this fraction counts as the whole time, to allow for clocks and timers.
_ALL_OF_IT = 0.9
# This many failed runs in a row make a model suspect.
_IN_A_ROW = 3


class HealthState(Enum):
    """The health of a model version. It takes requests unless it has FAILED."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    FAILED = "failed"


class HealthSignal(Enum):
    """A run succeeded; clients' runs give reason to doubt; a probe that should have succeeded did not."""

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
    """Why a version is not ready."""

    LOST = "device_lost"
    HANGING = "hanging"
    FAILING = "failing"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class HealthObservation:
    """One observation of a version. Runs that have succeeded (``well``), ``failed`` and ``hung`` since it was loaded;
    whether it is ``busy``; how many seconds a ``run`` takes; ``gone``, why it has no device left, "" while it has one,
    and whether it ``hangs`` there; ``lost``, which of its devices are gone and why; ``stalled``, for how many seconds
    hung runs have held all its infer requests, None if they don't."""

    well: int = 0
    failed: int = 0
    hung: int = 0
    busy: bool = False
    run: float = 0.0
    gone: str = ""
    hangs: bool = False
    lost: str = ""
    stalled: float | None = None


@dataclass(frozen=True, slots=True)
class HealthRules:
    """Seconds: ``probe_interval`` until an idle version is sent a probe (0: probes don't affect readiness),
    ``retry_interval`` between two probes of a suspect version, ``probe_timeout`` for each; ``hang_grace`` until a
    version whose infer requests are all held by hung runs is unready: most hung runs end at once when cancelled.
    ``liveness`` are the watchdog's rules, None without a watchdog."""

    probe_interval: float = 30.0
    retry_interval: float = 5.0
    probe_timeout: float = 10.0
    hang_grace: float = 0.5
    liveness: LivenessRules | None = None

    @classmethod
    def of(cls, settings: Settings, liveness: LivenessRules | None = None) -> Self:
        """The rules that ``settings`` configure."""
        return cls(probe_interval=settings.probe_interval, liveness=liveness)


class HealthTracker:
    """The health of one version, from the observations of each :meth:`look` and the outcomes of its probes. ``reason``
    says why it is not healthy.

    Without a device it has failed for good: its replacement gets its own tracker. Two rules ask for probes, and at most
    one probe is in flight:

    =================== ============================================ =================================================
    rule                sends a probe                                gives it up, with this result
    =================== ============================================ =================================================
    readiness           at the first look; when suspect; when idle   after ``probe_timeout``; suspect, then failed
    liveness            while ready without a successful run,        after three times the limit; none, as the version
                        busy or not                                  has owed an answer all along
    =================== ============================================ =================================================
    """

    def __init__(self, rules: HealthRules, now: float) -> None:
        self.state = HealthState.HEALTHY
        self.reason = ""
        self.trust = ProbeTrust.PROVING
        self._failure_reason: UnreadyReason | None = None
        self._rules = rules
        self._last = HealthObservation()
        self._gone = False
        # Failed client runs since the last success.
        self._in_a_row = 0
        # Warm-up has just shown that it runs.
        self._well = now
        self._probing: ProbeReason | None = None
        self._probed_at: float | None = None
        self._well_when_probed = 0
        self._owed = OwedAnswer(rules.liveness) if rules.liveness is not None else None
        self._answered = False
        self._failing_probes = False
        self._was_unready = False

    def look(self, now: float, observation: HealthObservation) -> float | None:
        """Take in ``observation``. Returns how many seconds a probe to be sent now may take, None if none is due;
        :meth:`ended` takes its outcome."""
        before, self._last = self._last, observation
        well, failed = observation.well - before.well, observation.failed - before.failed
        if observation.gone:
            self._gone, self.state, self.reason = True, HealthState.FAILED, observation.gone
            self._failure_reason = UnreadyReason.HANGING if observation.hangs else UnreadyReason.LOST
        if not self._gone:
            self._judge_runs(now, well, failed, observation.hung - before.hung)
        self._follow_answers(well, failed)
        reason = self._probe_due(now)
        if reason is None:
            return None
        self._probing, self._probed_at, self._well_when_probed = reason, now, observation.well
        return self._patience(reason)

    def ended(self, now: float, outcome: ProbeOutcome) -> None:
        """Take in the outcome of the probe that :meth:`look` asked for."""
        reason, probed_at, trusted = self._probing, self._probed_at, self.trust is ProbeTrust.TRUSTED
        if reason is None or probed_at is None:
            return
        self._probing = None
        self.trust = PROBE_TRUST[self.trust, outcome]
        if outcome is not ProbeOutcome.UNANSWERED and self.unready_reason is None:
            self._failing_probes = outcome is ProbeOutcome.FAILED
        if self._gone or not self._rules.probe_interval:
            return
        if outcome is ProbeOutcome.OK:
            self._well = now
            self._apply(HealthSignal.OK)
        elif outcome is ProbeOutcome.FAILED and trusted:
            self._apply(
                HealthSignal.PROBE_FAILED,
                "health probes fail that succeeded before",
                UnreadyReason.FAILING,
            )
        elif outcome is ProbeOutcome.UNANSWERED and reason is ProbeReason.READINESS and self._unheard(now, probed_at):
            silent = f"no response to a health probe for {now - probed_at:.0f} s"
            self._apply(HealthSignal.PROBE_FAILED, silent, UnreadyReason.SILENT)

    # -- readiness --------------------------------------------------------------------

    @property
    def unready_reason(self) -> UnreadyReason | None:
        """Why it is not ready; None if it is."""
        if self.state is HealthState.FAILED:
            return self._failure_reason
        return UnreadyReason.HANGING if self._stalled else None

    @property
    def unready_text(self) -> str:
        """The same in words, "" if it is ready."""
        if self.state is HealthState.FAILED:
            return self.reason
        return "hung runs hold all of its infer requests" if self._stalled else ""

    @property
    def degraded_text(self) -> str:
        """Which of its devices are gone and why, "" if all are present."""
        return self._last.lost

    @property
    def until_unready(self) -> float | None:
        """Seconds until the last observation makes it unready if nothing changes; None if it does not."""
        stalled = self._last.stalled
        return None if stalled is None or self._stalled else self._rules.hang_grace - stalled

    @property
    def _stalled(self) -> bool:
        return self._last.stalled is not None and self._last.stalled >= self._rules.hang_grace

    def _judge_runs(self, now: float, well: int, failed: int, hung: int) -> None:
        self._in_a_row = 0 if well else self._in_a_row + failed
        if hung > 0:
            self._apply(HealthSignal.SUSPICIOUS, "a run hung")
        if self._in_a_row >= _IN_A_ROW and failed:
            self._apply(HealthSignal.SUSPICIOUS, f"{self._in_a_row} runs in a row failed")
        if well:
            self._well = now
            self._apply(HealthSignal.OK)

    def _unheard(self, now: float, probed_at: float) -> bool:
        """Whether no run succeeded meanwhile; a probe that found the queue full says nothing."""
        patience = self._patience(ProbeReason.READINESS)
        return now - probed_at >= _ALL_OF_IT * patience and self._last.well == self._well_when_probed

    # -- liveness ---------------------------------------------------------------------

    def silent_for(self, now: float) -> float | None:
        """Seconds that it has owed an answer, if that exceeds the limit; None otherwise. Called at intervals of
        :attr:`LivenessRules.look`, based on the last observation.

        A version that can't be probed is trusted as long as it is ready. An unready one owes nothing while it is idle
        or without a device: the monitor reloads it.
        """
        if self._owed is None or self._rules.liveness is None:
            return None
        seen = self._last
        lost = bool(seen.gone) and not seen.hangs
        owes = seen.busy and not lost if self._was_unready else seen.busy or self._failing_probes
        self._owed.look(now, owes=owes, answered=self._answered)
        self._answered = False
        if self._owed.since is None or (self.trust is ProbeTrust.UNTESTABLE and not self._was_unready):
            return None
        seconds = now - self._owed.since
        return seconds if seconds > self._limit(self._rules.liveness) else None

    def _follow_answers(self, well: int, failed: int) -> None:
        """For an unready version, any ended run counts as an answer. What it owes is reset whenever it becomes ready or
        unready."""
        unready = self.unready_reason is not None
        if unready is not self._was_unready:
            self._was_unready, self._failing_probes = unready, False
            if self._owed is not None:
                self._owed.forgive()
        if well > 0 or (unready and failed > 0):
            self._answered, self._failing_probes = True, False

    def _limit(self, rules: LivenessRules) -> float:
        return max(rules.limit, _RUNS * self._last.run)

    # -- probes -----------------------------------------------------------------------

    def _probe_due(self, now: float) -> ProbeReason | None:
        if self._probing is not None or self._gone or self.trust is ProbeTrust.UNTESTABLE:
            return None
        if self._rules.probe_interval and self._due_for_readiness(now):
            return ProbeReason.READINESS
        liveness = self._rules.liveness
        if liveness is None or self.unready_reason is not None:
            return None
        return ProbeReason.LIVENESS if now - self._heard_or_probed >= liveness.probe_interval else None

    def _due_for_readiness(self, now: float) -> bool:
        if self._probed_at is None:
            # Find out first whether it runs on synthetic input at all.
            return True
        if self.state is not HealthState.HEALTHY:
            return now - self._probed_at >= self._rules.retry_interval
        # A busy version is judged by its runs.
        return not self._last.busy and now - self._heard_or_probed >= self._rules.probe_interval

    @property
    def _heard_or_probed(self) -> float:
        return self._well if self._probed_at is None else max(self._well, self._probed_at)

    def _patience(self, reason: ProbeReason) -> float:
        """Seconds that a probe may take."""
        if reason is ProbeReason.LIVENESS and self._rules.liveness is not None:
            return _GIVEN_UP * self._limit(self._rules.liveness)
        return max(self._rules.probe_timeout, _RUNS * self._last.run)

    def _apply(self, signal: HealthSignal, reason: str = "", unready_reason: UnreadyReason | None = None) -> None:
        self.state = TRANSITIONS[self.state, signal]
        self._failure_reason = unready_reason or self._failure_reason
        if signal is HealthSignal.OK:
            self.reason, self._in_a_row = "", 0
        else:
            self.reason = reason if signal is HealthSignal.PROBE_FAILED or not self.reason else self.reason
