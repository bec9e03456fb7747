"""Whether a version that gets a part of the requests may have them all: a pure analysis of both versions' results.

Unlike a tuner's candidate it is held against what the other answers *at the same time*: a new version is not to be
turned away because the machine is busier than it was a minute ago, and it may well be heavier than the one before.
"""

from dataclasses import dataclass, field
from enum import Enum

from inferd.rollout.trial import exceeds
from inferd.tuning.goal import share_bounds

# One-sided: one in a hundred is judged wrongly at a look.
_Z = 2.33
# A version that hardly anybody asks is not tried for ever: so many times its duration, at most.
PATIENCE = 5


class CanaryVerdict(Enum):
    """How a canary ends. Everything but PROMOTED leaves the version before as it was."""

    PROMOTED = "promoted"
    FAILED = "failed"
    WORSE = "worse"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class CanaryRules:
    """The new version gets ``share`` of the requests for ``seconds``, and until it was seen with so many ``requests``.

    ``latency`` is the objective in seconds, None where there is none; ``percentile`` % are to keep it.
    """

    share: float
    seconds: float
    requests: int
    latency: float | None = None
    percentile: float = 99.0


@dataclass(slots=True)
class CanaryCounts:
    """What became of one version's requests: ``late`` are those answered later than the objective, refused for want
    of capacity or out of time, ``failed`` those whose failure was the server's."""

    ended: int = 0
    failed: int = 0
    late: int = 0


@dataclass(slots=True)
class CanaryAnalysis:
    """One canary under ``rules``. Times are seconds of whatever clock :meth:`step` is given."""

    rules: CanaryRules
    incumbent: CanaryCounts = field(default_factory=CanaryCounts)
    candidate: CanaryCounts = field(default_factory=CanaryCounts)
    _since: float | None = None

    def step(self, now: float, waiting: int) -> CanaryVerdict | None:
        """None to go on; ``waiting`` requests are with the candidate."""
        if self._since is None:
            self._since = now
        if self._fails():
            return CanaryVerdict.FAILED
        if self._worse():
            return CanaryVerdict.WORSE
        passed = now - self._since
        enough = passed >= self.rules.seconds and self.candidate.ended >= self.rules.requests
        return self.conclude(waiting) if enough or passed >= PATIENCE * self.rules.seconds else None

    def conclude(self, waiting: int) -> CanaryVerdict:
        """What to do by what was seen until now."""
        if self._fails():
            return CanaryVerdict.FAILED
        if self._worse():
            return CanaryVerdict.WORSE
        seen, other = self.candidate, self.incumbent
        # Few requests prove little either way: then it had better not fail where the other does not.
        if (seen.failed and not other.failed) or (waiting and not seen.ended):
            return CanaryVerdict.FAILED
        return CanaryVerdict.PROMOTED

    def summary(self) -> str:
        """What was seen, in words."""
        candidate, incumbent = _counts_text(self.candidate), _counts_text(self.incumbent)
        return f"of its requests {candidate}; of those to the version before {incumbent}"

    def _fails(self) -> bool:
        return exceeds(self.candidate.failed, self.candidate.ended, self.incumbent.failed, self.incumbent.ended)

    def _worse(self) -> bool:
        """More of its answers are late than may be, and than of the other's, and not by chance."""
        seen, other = self.candidate, self.incumbent
        answers, of_other = seen.ended - seen.failed, other.ended - other.failed
        if not answers:
            return False
        allowed = 0.0 if self.rules.latency is None else 1 - self.rules.percentile / 100
        low, _ = share_bounds(seen.late / answers, answers, _Z)
        return low > allowed and exceeds(seen.late, answers, other.late, of_other)


def _counts_text(tally: CanaryCounts) -> str:
    return f"{tally.failed} of {tally.ended} failed and {tally.late} came late"
