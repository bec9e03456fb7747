"""The last comparison: the few that may be the best, measured in turns until it is clear which is."""

from collections.abc import Callable, Sequence

from inferd.tuning.candidates import Candidate
from inferd.tuning.estimates import Estimate, Estimates

# Windows of one look of the race.
WINDOWS = 2
# Differences below this, as a part of the score, are of no interest.
TIE = 0.02
# How many may run in each round.
_ROOM = (6, 6, 4, 4, 3, 3, 2, 2, 2, 2)


class Race:
    """Rounds in which each contender gets one look, every other round in reverse: drift affects all alike.

    A contender that falls behind by more than the noise is out, and so are the last ones if there
    is no room for all. The best of ``seeds`` runs until it is beaten, and at least once.
    """

    def __init__(self, ranked: Sequence[Estimate], seeds: Sequence[Candidate]) -> None:
        leader = ranked[0]
        self._seed = next((e.candidate for e in ranked if e.candidate in seeds), None)
        rivals = [e for e in ranked[1:] if e.may_beat(leader)]
        # Among those about as good as the leader, what takes least is wanted in the end.
        frugal = [e for e in rivals if abs(e.ahead(leader)) <= TIE and e.candidate.effort < leader.candidate.effort]
        entered = [leader.candidate, *([self._seed] if self._seed else [])]
        entered += [min(frugal, key=lambda e: e.candidate.effort).candidate] if frugal else []
        entered += [e.candidate for e in rivals]
        self.contenders = list(dict.fromkeys(entered))[: _ROOM[0]]
        self._alive = self.contenders
        self._round = 0
        self._queue: list[Candidate] = []

    def next(
        self, estimates: Estimates, may: Callable[[Candidate], bool], affordable: Callable[[Sequence[Candidate]], bool]
    ) -> Candidate | None:
        """The contender to measure now, if it ``may`` be; None once the race is decided or no round ``affordable``."""
        if not self._queue:
            self._alive = self._remaining([estimates[c] for c in self._alive if c in estimates and may(c)])
            while len(self._alive) > 2 and not affordable(self._alive[:: self._direction]):
                self._alive = self._alive[:-1]
            if len(self._alive) < 2 or not affordable(self._alive[:: self._direction]):
                return None
            self._queue = self._alive[:: self._direction]
            self._round += 1
        candidate = self._queue.pop(0)
        # Others of the round may have cost more than was foreseen.
        return candidate if may(candidate) and affordable([candidate]) else None

    @property
    def _direction(self) -> int:
        return -1 if self._round % 2 else 1

    def _remaining(self, alive: list[Estimate]) -> list[Candidate]:
        """The contenders of the next round, the best first and then the seed; fewer than two once it is decided."""
        if self._round == len(_ROOM) or not alive:
            return []
        alive.sort(key=lambda e: e.rank, reverse=True)
        leader, *others = alive
        if self._round:
            # Of no interest is who has lost, and who can't win by more than nothing.
            others = [e for e in others if e.may_beat(leader) and e.ahead(leader) + e.doubt_with(leader) > TIE]
        others.sort(key=lambda e: e.candidate != self._seed)
        return [leader.candidate, *(e.candidate for e in others)][: _ROOM[self._round]]


def choose(ranked: Sequence[Estimate], seeds: Sequence[Candidate], *, by_latency: bool) -> Estimate:
    """The best of ``ranked``, which has the best first; among those about as good, the one that takes least.

    Never one that the evidence puts behind a seed.
    """
    leader = ranked[0]
    ties = [e for e in ranked if e.rank[0] == leader.rank[0] and -e.ahead(leader) <= TIE and e.may_beat(leader)]
    if by_latency and leader.eligible:
        most = max(e.throughput for e in ties)
        ties = [e for e in ties if e.throughput >= (1 - TIE) * most]
    else:
        bar = max((e.score for e in ranked if e.candidate in seeds and e.rank[0] == leader.rank[0]), default=0.0)
        ties = [e for e in ties if e.score >= bar]
    return min(ties, key=lambda e: (e.candidate.effort, e.candidate not in seeds, -e.score, e.candidate))
