"""The last comparison: the few candidates that may be the best, measured in turns until the best is clear."""

from collections.abc import Callable, Sequence

from inferd.tuning.candidates import Candidate
from inferd.tuning.estimates import Estimate, Estimates

# Windows per measurement in the race.
WINDOWS = 2
# Differences below this, as a fraction of the score, don't matter.
TIE = 0.02
# How many candidates may run in each round.
_ROOM = (6, 6, 4, 4, 3, 3, 2, 2, 2, 2)


class Race:
    """Rounds in which each contender is measured once, every other round in reverse: drift affects all alike.

    A contender that trails by more than the noise is out, and so are the last ones if there is no
    room for all. The best of ``seeds`` runs until it is beaten, and at least once.
    """

    def __init__(self, ranked: Sequence[Estimate], seeds: Sequence[Candidate]) -> None:
        leader = ranked[0]
        self._seed = next((e.candidate for e in ranked if e.candidate in seeds), None)
        rivals = [e for e in ranked[1:] if e.may_beat(leader)]
        # Candidates about as good as the leader that take fewer resources: one of them may be chosen in the end.
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
        """The contender to measure now, if it ``may`` be; None once the race is decided or not ``affordable``."""
        if not self._queue:
            self._alive = self._remaining([estimates[c] for c in self._alive if c in estimates and may(c)])
            while len(self._alive) > 2 and not affordable(self._alive[:: self._direction]):
                self._alive = self._alive[:-1]
            if len(self._alive) < 2 or not affordable(self._alive[:: self._direction]):
                return None
            self._queue = self._alive[:: self._direction]
            self._round += 1
        candidate = self._queue.pop(0)
        # Earlier measurements of the round may have cost more than predicted.
        return candidate if may(candidate) and affordable([candidate]) else None

    @property
    def _direction(self) -> int:
        return -1 if self._round % 2 else 1

    def _remaining(self, alive: list[Estimate]) -> list[Candidate]:
        """The next round's contenders, the best first and then the seed; fewer than two once the race is decided."""
        if self._round == len(_ROOM) or not alive:
            return []
        alive.sort(key=lambda e: e.rank, reverse=True)
        leader, *others = alive
        if self._round:
            # Drop contenders that have lost, or can't lead by more than a tie.
            others = [e for e in others if e.may_beat(leader) and e.ahead(leader) + e.doubt_with(leader) > TIE]
        others.sort(key=lambda e: e.candidate != self._seed)
        return [leader.candidate, *(e.candidate for e in others)][: _ROOM[self._round]]


def choose(ranked: Sequence[Estimate], seeds: Sequence[Candidate], *, by_latency: bool) -> Estimate:
    """The best of ``ranked``, which has the best first; among about equally good ones, the one with the least effort.

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
