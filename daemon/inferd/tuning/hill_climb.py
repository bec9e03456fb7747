"""Which candidate to measure next: an overview, then neighbours of the best so far, then unexplored places."""

from collections.abc import Callable, Iterable, Sequence
from math import dist, inf, log

from inferd.tuning.candidates import Candidate, Space
from inferd.tuning.costs import Costs
from inferd.tuning.deltas import Delta, delta_between, delta_text
from inferd.tuning.estimates import Estimate, Estimates

# Windows of a first measurement, and how many the best needs before its neighbours are compared with it.
FIRST, CONFIRMED = 2, 4
# After a move that gained this much, as a fraction of the score, longer steps in its direction are tried first.
_WORTHWHILE = 0.05
# The gain recorded for a move that lost the objective; its opposite for one that met it again.
_LOST = -1.0
# A tail this many times the objective certainly misses it; and this many times, most likely with other settings too.
_LATE, _VERY_LATE = 1.1, 1.5
# Measurements next to candidates that tie with the best, and how many such ties are considered.
_BESIDE_TIES, _TIES = 8, 3
# Measurements in unexplored places: one per this many candidates, within bounds; and how many places to choose from.
_CANDIDATES_A_FILL, _FEWEST_FILLS, _MOST_FILLS = 25, 3, 8
_PLACES = 64

May = Callable[[Candidate], bool]


class HillClimb:
    """Proposes candidates of ``space``, and learns how much each kind of move gains.

    The first few are spread out, with other axes as in ``like``.
    """

    def __init__(self, space: Space, like: Candidate) -> None:
        self._space = space
        self._scouts = list(space.scouts(like))
        self._places = list(dict.fromkeys(space.spread(_PLACES)))
        self._fills = min(_MOST_FILLS, max(_FEWEST_FILLS, space.size // _CANDIDATES_A_FILL))
        self._beside_ties = _BESIDE_TIES
        self._gains: dict[Delta, float] = {}
        # Neighbours and jumps of each candidate that was the best or tied with it.
        self._around: dict[Candidate, tuple[tuple[Candidate, ...], tuple[Candidate, ...]]] = {}

    def learn(self, delta: Delta, before: Estimate, after: Estimate) -> None:
        """Record that ``delta`` led from ``before`` to ``after``."""
        if before.eligible != after.eligible:
            gain = -_LOST if after.eligible else _LOST
        elif min(before.score, after.score) > 0:
            gain = log(after.score / before.score)
        else:
            gain = _LOST
        self._gains[delta] = (self._gains.get(delta, gain) + gain) / 2

    def propose(
        self, ranked: Sequence[Estimate], estimates: Estimates, costs: Costs, may: May
    ) -> tuple[Candidate, str] | None:
        """A candidate that was not measured yet and ``may`` be, with the reason; None when enough were measured.

        ``ranked`` has the best first.
        """
        best = ranked[0].candidate
        late = self._late(estimates)

        def open_(candidate: Candidate) -> bool:
            return candidate not in estimates and may(candidate) and not any(_behind(candidate, e) for e in late)

        def far_behind(candidate: Candidate) -> bool:
            return any(_far_behind(candidate, e) for e in late if e.tail > _VERY_LATE * (estimates.goal.latency or inf))

        def promising(candidates: Iterable[Candidate], base: Candidate = best) -> Candidate | None:
            # Moves that gained before come first, moves that lost last; ties go to candidates without a compile.
            def prospect(candidate: Candidate) -> tuple[float, bool]:
                return self._prospect(delta_between(base, candidate)), not costs.switches(candidate)

            return max(filter(open_, candidates), key=prospect, default=None)

        while self._scouts:
            scout = self._scouts.pop(0)
            if open_(scout) and not far_behind(scout):
                return scout, "an overview first: streams and batches far apart"
        neighbours, jumps = self._surroundings(best)
        longer = [c for c in jumps if self._gains.get(delta_between(best, c), 0.0) > _WORTHWHILE]
        if found := promising((*longer, *neighbours)):
            return found, f"a step from the best so far: {delta_text(delta_between(best, found))}"
        if found := promising(jumps):
            return found, f"a jump from the best so far: {delta_text(delta_between(best, found))}"
        if self._beside_ties:
            # Including candidates with a higher score that may just meet or just miss the objective.
            rivals = sorted((e for e in ranked[1:] if e.may_beat(ranked[0])), key=lambda e: -e.score)
            for rival in rivals[:_TIES]:
                if found := promising(self._surroundings(rival.candidate)[0], rival.candidate):
                    self._beside_ties -= 1
                    return found, "next to a candidate that ties with the best so far"
        if self._fills:
            self._fills -= 1
            places = [c for c in self._places if open_(c) and not far_behind(c)]
            if found := self._furthest(places, estimates):
                return found, "far from all measured candidates"
        return None

    def _surroundings(self, candidate: Candidate) -> tuple[tuple[Candidate, ...], tuple[Candidate, ...]]:
        if candidate not in self._around:
            self._around[candidate] = self._space.neighbours(candidate), self._space.jumps(candidate)
        return self._around[candidate]

    def _prospect(self, delta: Delta) -> float:
        """The expected gain of ``delta``: its own gain so far, or the sum over its parts; 0 if unknown."""
        known = self._gains.get(delta)
        return round(sum(self._gains.get((part,), 0.0) for part in delta) if known is None else known, 2)

    def _late(self, estimates: Estimates) -> list[Estimate]:
        latency = estimates.goal.latency
        if latency is None:
            return []
        return [e for e in estimates.ranking() if not e.eligible and e.tail > _LATE * latency]

    def _furthest(self, candidates: Iterable[Candidate], estimates: Estimates) -> Candidate | None:
        measured = [self._space.place(e.candidate) for e in estimates.ranking()]

        def distance(candidate: Candidate) -> float:
            here = self._space.place(candidate)
            return min(dist(here, there) for there in measured)

        return max(candidates, key=distance, default=None)


def _behind(candidate: Candidate, late: Estimate) -> bool:
    """Whether ``late`` is the same candidate with less in flight: more in flight never lowers latency."""
    known = late.candidate
    return (
        known.requests <= candidate.requests
        and known.batch <= candidate.batch
        and known.path == candidate.path
        and known.compile_key == candidate.compile_key
    )


def _far_behind(scout: Candidate, late: Estimate) -> bool:
    """Whether ``late`` has less in flight and at least as many threads per stream: ``scout`` is likely late, too."""
    known = late.candidate
    return (
        known.requests <= scout.requests
        and known.batch <= scout.batch
        and known.threads * scout.streams >= scout.threads * known.streams
    )
