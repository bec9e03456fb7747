"""Whether a configuration on trial takes over: a pure judgement of both sides' results.

First the incumbent is observed alone, then the candidate's share grows in stages. A candidate that
uses more of the machine slows the incumbent down as well, so its results are compared with the
incumbent's earlier results, not with simultaneous ones. Other work that slows the machine down
meanwhile thus counts against the candidate: it is rejected and may be proposed again.
"""

from bisect import bisect_right, insort
from dataclasses import dataclass, field

from inferd.requests import Observation
from inferd.rollout.policy import CONFIDENCE, RolloutDecision, Side, exceeds
from inferd.tuning.goal import share_bounds

# Without an objective, responses may take so many times the incumbent's median latency.
_SLOW = 2.0
# The share of responses that may then take longer: a burst of other work delays some whatever the configuration.
_ALLOWED = 0.1
# Latencies to keep of each side; more would prove nothing more.
_MOST_KEPT = 2000

_REASONS = {
    RolloutDecision.PROMOTED: "it did as well in service and measured better",
    RolloutDecision.FAILED: "more of its runs failed",
    RolloutDecision.WORSE: "more of its responses were late",
    RolloutDecision.STOPPED: "the trial was stopped",
    RolloutDecision.WRONG_OUTPUT: "its outputs differ",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """The candidate gets ``share`` of the requests until each side with traffic has ``answers``, or ``seconds`` have
    passed."""

    share: float
    answers: int
    seconds: float


STAGES = (Stage(0.0, 100, 5.0), Stage(0.1, 10, 10.0), Stage(0.5, 100, 20.0))


@dataclass(slots=True)
class TrialSide:
    """The results of one configuration: ``latencies`` ascending, in seconds."""

    answered: int = 0
    failed: int = 0
    latencies: list[float] = field(default_factory=list)

    def add(self, latency: float | None) -> None:
        """One more answer, None for an inference that failed."""
        if latency is None:
            self.failed += 1
            return
        self.answered += 1
        if len(self.latencies) < _MOST_KEPT:
            insort(self.latencies, latency)

    @property
    def ended(self) -> int:
        return self.answered + self.failed

    @property
    def median(self) -> float:
        return self.latencies[len(self.latencies) // 2] if self.latencies else 0.0

    def late(self, latency: float) -> int:
        """Answers that took longer than ``latency``."""
        return len(self.latencies) - bisect_right(self.latencies, latency)


class Trial:
    """One trial against an objective: ``percentile`` % of the responses within ``latency`` seconds, None for no
    objective. A :class:`RolloutPolicy`; clients' mistakes and overload prove nothing about a configuration."""

    def __init__(self, latency: float | None, percentile: float = 99.0, stages: tuple[Stage, ...] = STAGES) -> None:
        self._latency = latency
        self._allowed = _ALLOWED if latency is None else 1 - percentile / 100
        self._stages = stages
        self._stage = 0
        self._since: float | None = None
        # The incumbent while it served alone.
        self.before = TrialSide()
        self.incumbent = TrialSide()
        self.candidate = TrialSide()

    @property
    def share(self) -> float:
        """The part of the requests that the candidate is to get."""
        return self._stages[self._stage].share

    def observe(self, side: Side, seen: Observation) -> None:
        """A request to ``side`` has ended."""
        if seen.outcome == "ok":
            self.add(side, seen.stages.total() / 1e9)
        elif seen.outcome == "internal":
            self.add(side, None)

    def add(self, side: Side, latency: float | None) -> None:
        """``side`` answered after ``latency`` seconds, or failed to where that is None."""
        (self.candidate if side == "candidate" else self.incumbent).add(latency)

    def step(self, now: float, waiting: int = 0) -> RolloutDecision | None:  # noqa: ARG002 - the policies' protocol
        """The decision at ``now``; None to go on with :attr:`share`."""
        if self._since is None:
            self._since = now
        if self._fails():
            return RolloutDecision.FAILED
        if self._worse():
            return RolloutDecision.WORSE
        stage = self._stages[self._stage]
        sides = [side for side, part in ((self.incumbent, 1 - stage.share), (self.candidate, stage.share)) if part > 0]
        enough = min(side.ended for side in sides) >= stage.answers
        if not enough and now - self._since < stage.seconds:
            return None
        # Without traffic there are no results, and the measurements that proposed the candidate stand.
        if self._stage + 1 == len(self._stages) or not any(side.ended for side in (self.incumbent, self.candidate)):
            return RolloutDecision.PROMOTED
        self._stage, self._since = self._stage + 1, now
        # Results under another share don't count for this one.
        if not stage.share:
            self.before = self.incumbent
        self.incumbent, self.candidate = TrialSide(), TrialSide()
        return None

    def conclude(self, waiting: int) -> RolloutDecision:  # noqa: ARG002 - the policies' protocol
        """Without results against it, the measurements that proposed the candidate stand."""
        if self._fails():
            return RolloutDecision.FAILED
        return RolloutDecision.WORSE if self._worse() else RolloutDecision.PROMOTED

    def reason(self, decision: RolloutDecision) -> str:
        """Why it ended as ``decision``, in words."""
        return _REASONS[decision]

    def _fails(self) -> bool:
        """Significantly more of the candidate's runs fail than of the incumbent's."""
        return exceeds(self.candidate.failed, self.candidate.ended, self.incumbent.failed, self.incumbent.ended)

    def _worse(self) -> bool:
        """Significantly more of its responses are late than allowed, and than the incumbent's were before."""
        other = self.before if self.before.latencies else self.incumbent
        if not other.latencies or not self.candidate.latencies:
            return False
        latency = self._latency if self._latency is not None else _SLOW * other.median
        late, answers = self.candidate.late(latency), len(self.candidate.latencies)
        low, _ = share_bounds(late / answers, answers, CONFIDENCE)
        return low > self._allowed and exceeds(late, answers, other.late(latency), len(other.latencies))
