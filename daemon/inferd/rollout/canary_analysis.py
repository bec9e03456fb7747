"""Whether a canary may be promoted: a pure analysis of both versions' results.

Unlike a tuner's candidate, it is compared with the incumbent's results *at the same time*: a new version must not be
rejected because the machine is busier than a minute ago, and it may well be heavier than the incumbent.
"""

from dataclasses import dataclass, field

from inferd.config.model import ModelConfig
from inferd.errors import QuotaExceeded
from inferd.requests import Observation
from inferd.rollout.policy import CONFIDENCE, RolloutDecision, Side, exceeds
from inferd.tuning.goal import share_bounds

# A canary that gets hardly any requests ends after so many times its duration.
PATIENCE = 5


@dataclass(frozen=True, slots=True)
class CanaryRules:
    """The new version gets ``share`` of the requests for at least ``seconds`` and ``requests``.

    ``latency`` is the objective in seconds, None if there is none; ``percentile`` % of the requests must keep it.
    """

    share: float
    seconds: float
    requests: int
    latency: float | None = None
    percentile: float = 99.0

    @classmethod
    def of(cls, config: ModelConfig) -> "CanaryRules":
        """How a version with the settings ``config`` is tried."""
        rollout, objective = config.rollout, config.objective
        return cls(
            rollout.canary_share,
            rollout.canary_duration,
            rollout.canary_requests,
            objective.latency_slo,
            objective.percentile,
        )


@dataclass(slots=True)
class CanaryCounts:
    """The results of one version's requests. ``late``: answered later than the objective, refused for lack of capacity,
    or out of time. ``failed``: failed through the server's fault."""

    ended: int = 0
    failed: int = 0
    late: int = 0


@dataclass(slots=True)
class CanaryAnalysis:
    """One canary under ``rules``: a :class:`RolloutPolicy` of a single stage."""

    rules: CanaryRules
    incumbent: CanaryCounts = field(default_factory=CanaryCounts)
    candidate: CanaryCounts = field(default_factory=CanaryCounts)
    _since: float | None = None

    @property
    def share(self) -> float:
        """The candidate's share, from the first request to the decision."""
        return self.rules.share

    def observe(self, side: Side, seen: Observation) -> None:
        """Count it; mistakes of clients and cancelled requests say nothing about a version."""
        counts, latency = self.candidate if side == "candidate" else self.incumbent, self.rules.latency
        match seen.outcome:
            case "ok":
                counts.ended += 1
                counts.late += latency is not None and seen.stages.total() > latency * 1e9
            case "internal" | "unavailable":
                counts.ended += 1
                counts.failed += 1
            case "overloaded" | "deadline" if not isinstance(seen.error, QuotaExceeded):
                counts.ended += 1
                counts.late += 1

    def step(self, now: float, waiting: int) -> RolloutDecision | None:
        """None to go on; ``waiting`` requests are with the candidate."""
        if self._since is None:
            self._since = now
        if self._fails():
            return RolloutDecision.FAILED
        if self._worse():
            return RolloutDecision.WORSE
        passed = now - self._since
        enough = passed >= self.rules.seconds and self.candidate.ended >= self.rules.requests
        return self.conclude(waiting) if enough or passed >= PATIENCE * self.rules.seconds else None

    def conclude(self, waiting: int) -> RolloutDecision:
        """The decision on the results so far."""
        if self._fails():
            return RolloutDecision.FAILED
        if self._worse():
            return RolloutDecision.WORSE
        seen, other = self.candidate, self.incumbent
        # Few requests prove little either way: then the candidate must not fail if the incumbent does not.
        if (seen.failed and not other.failed) or (waiting and not seen.ended):
            return RolloutDecision.FAILED
        return RolloutDecision.PROMOTED

    def reason(self, decision: RolloutDecision) -> str:
        """The results; they play no part in STOPPED."""
        if decision is RolloutDecision.STOPPED:
            return "another change came first"
        return self.summary()

    def summary(self) -> str:
        """The results in words."""
        candidate, incumbent = _counts_text(self.candidate), _counts_text(self.incumbent)
        return f"new version: {candidate}; current version: {incumbent}"

    def _fails(self) -> bool:
        return exceeds(self.candidate.failed, self.candidate.ended, self.incumbent.failed, self.incumbent.ended)

    def _worse(self) -> bool:
        """Significantly more responses are late than allowed, and than the incumbent's."""
        seen, other = self.candidate, self.incumbent
        answers, of_other = seen.ended - seen.failed, other.ended - other.failed
        if not answers:
            return False
        allowed = 0.0 if self.rules.latency is None else 1 - self.rules.percentile / 100
        low, _ = share_bounds(seen.late / answers, answers, CONFIDENCE)
        return low > allowed and exceeds(seen.late, answers, other.late, of_other)


def _counts_text(tally: CanaryCounts) -> str:
    return f"{tally.failed} of {tally.ended} requests failed, {tally.late} late"
