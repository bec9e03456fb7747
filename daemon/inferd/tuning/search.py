"""Which candidate to measure next, and when to stop: a step machine without clock or I/O.

``step`` says what to measure, ``learn`` takes the result. The seeds come first: the choices of
OpenVINO's hints and the last winner. Then a climb from the best so far (``hill_climb.py``), then a
race between the possible winners (``race.py``), and another climb if the race has a new leader.
Every decision follows from the measurements alone, so that a search can be replayed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from inferd.tuning.candidates import Candidate, CompileKey, Space
from inferd.tuning.costs import Costs
from inferd.tuning.deltas import delta_between
from inferd.tuning.estimates import Estimate, Estimates
from inferd.tuning.goal import Goal, GoalVerdict
from inferd.tuning.hill_climb import CONFIRMED, FIRST, HillClimb
from inferd.tuning.measurement import Measurement
from inferd.tuning.outcome import SEEDS, Outcome, conclude
from inferd.tuning.race import WINDOWS, Race, choose

_MOST_RACES = 6
# Windows per measurement that tests whether the objective is met, and how many are enough to believe it.
_PROOF, _PROVEN = 4, 24
# A tail above this fraction of the objective, measured over few answers, may really miss it.
_EDGE = 0.8
# The largest fraction of the budget reserved for the race.
_RESERVED = 0.4
# If no seed ran: how many other candidates to try before giving up.
_MOST_FAILURES = 12
# A compile key that has failed this often and never ran is excluded.
_FAILED = 2


@dataclass(frozen=True, slots=True)
class Look:
    """Measure ``candidate`` for this many ``windows``."""

    candidate: Candidate
    windows: int
    why: str


class Search:
    """One search of ``space``; ``budget`` is in seconds and does not limit the seeds, which are always measured.

    ``seeds`` are the choices of the LATENCY and the THROUGHPUT hint and the stored winner, in this
    order; later ones may be missing. A seed outside of the space is replaced by the nearest member.
    """

    def __init__(self, space: Space, goal: Goal, seeds: Sequence[Candidate], *, budget: float) -> None:
        if not 1 <= len(seeds) <= len(SEEDS):
            raise ValueError(f"a search starts from 1 to {len(SEEDS)} seeds, not {len(seeds)}")
        self._space = space
        self._goal = goal
        self._budget = budget
        self._seeds = [space.clip(seed) for seed in seeds]
        self._estimates = Estimates(goal)
        self._costs = Costs()
        self._hill_climb = HillClimb(space, self._seeds[1 if len(self._seeds) > 1 else 0])
        self._left_out: dict[Candidate, str] = {}
        # Failures of each compile key that never ran, None once it ran; and the excluded keys.
        self._failures: dict[CompileKey, int | None] = {}
        self._ruled_out: set[CompileKey] = set()
        self._race: Race | None = None
        self._races = 0
        self._raced: list[Candidate] = []
        self._next: Look | Outcome | None = None
        self._base: Candidate | None = None

    @property
    def best_so_far(self) -> Estimate | None:
        """For progress displays; the outcome may prefer another candidate that is about as good."""
        ranked = self._ranked()
        return ranked[0] if ranked else None

    def step(self, spent: float) -> Look | Outcome:
        """What to measure next, after ``spent`` seconds; unchanged until :meth:`learn` is called."""
        if self._next is None:
            self._next = self._decided(spent)
        return self._next

    def learn(self, measurement: Measurement) -> None:
        """Take the result of the last measurement."""
        if not isinstance(self._next, Look) or measurement.asked != self._next.candidate:
            raise AssertionError(f"unexpected measurement of {measurement.asked.describe()}")
        self._next = None
        self._costs.learn(measurement)
        asked, effective = measurement.asked, measurement.effective
        if measurement.failure is not None:
            self._left_out[asked] = measurement.failure
            self._estimates.drop(asked)
            self._failed(asked.compile_key)
            return
        self._failures[asked.compile_key] = None
        if effective != asked:
            self._left_out[asked] = f"the device changed it to {effective.describe()}"
            self._seeds = [effective if seed == asked else seed for seed in self._seeds]
        self._estimates.add(effective, measurement.windows)
        if (base := self._base) is not None and base in self._estimates:
            self._hill_climb.learn(delta_between(base, asked), self._estimates[base], self._estimates[effective])

    def _failed(self, compile_key: CompileKey) -> None:
        failures = self._failures.get(compile_key, 0)
        if failures is not None:
            self._failures[compile_key] = failures + 1
            if failures + 1 == _FAILED:
                self._ruled_out.add(compile_key)

    # -- the phases -------------------------------------------------------------------

    def _decided(self, spent: float) -> Look | Outcome:
        look = self._seed() or self._anything(spent)
        while look is None:
            look = self._explore(spent) or self._compare(spent)
            if look is None and not self._reopens():
                return self._concluded()
        return look

    def _seed(self) -> Look | None:
        for seed, name in zip(self._seeds, SEEDS, strict=False):
            if seed not in self._estimates and seed not in self._left_out:
                return Look(seed, FIRST, name)
        return None

    def _anything(self, spent: float) -> Look | None:
        """If no seed ran, look for a candidate that does."""
        if self._estimates.ranking() or len(self._left_out) >= _MOST_FAILURES:
            return None
        for candidate in self._space.spread(64):
            if self._may(candidate) and self._affordable(spent, [candidate], FIRST):
                return Look(candidate, FIRST, "no seed ran")
        return None

    def _explore(self, spent: float) -> Look | None:
        ranked = self._ranked()
        if self._race is not None or not ranked:
            return None
        best = ranked[0].candidate
        self._base = None
        spent += self._reserve(best)
        if ranked[0].windows < CONFIRMED:
            if self._affordable(spent, [best], CONFIRMED - FIRST):
                return Look(best, CONFIRMED - FIRST, "the best so far, measured again in case it was lucky")
            return None
        proposal = self._hill_climb.propose(
            ranked, self._estimates, self._costs, lambda c: self._may(c) and self._affordable(spent, [c], FIRST)
        )
        if proposal is None:
            return None
        self._base = best
        return Look(proposal[0], FIRST, proposal[1])

    def _compare(self, spent: float) -> Look | None:
        self._base = None
        ranked = self._ranked()
        if not ranked:
            return None
        if self._race is None:
            # A candidate that misses the objective need not take part.
            if proof := self._prove(spent + self._reserve(ranked[0].candidate)):
                return proof
            race = Race(ranked, self._seeds)
            if set(race.contenders) <= set(self._raced):
                return None
            self._races += 1
            self._race = race
            self._raced += race.contenders
            self._estimates.refresh(race.contenders)
        candidate = self._race.next(self._estimates, self._may, lambda all_: self._affordable(spent, all_, WINDOWS))
        if candidate is None:
            return self._prove(spent)
        return Look(candidate, WINDOWS, "in turns with the other possible winners")

    def _prove(self, spent: float) -> Look | None:
        """More windows for the likely winner, while it is uncertain whether it meets the objective."""
        if not (contenders := self._contenders()):
            return None
        winner = choose(contenders, self._seeds, by_latency=self._goal.kind == "latency")
        latency = self._goal.latency or 0.0
        unsure = winner.verdict is GoalVerdict.UNSURE and winner.windows < _PROVEN and winner.tail > _EDGE * latency
        if not unsure or not self._affordable(spent, [winner.candidate], _PROOF):
            return None
        return Look(winner.candidate, _PROOF, "whether the best so far keeps the objective")

    def _reopens(self) -> bool:
        """Whether the race has a new leader whose neighbours are unexplored."""
        ranked = self._ranked()
        if self._race is None or self._races == _MOST_RACES or not ranked:
            return False
        self._race = None
        return True

    # -- shared by the phases ---------------------------------------------------------

    def _ranked(self) -> list[Estimate]:
        """The candidates that may be chosen, the best first."""
        return [e for e in self._estimates.ranking() if self._may(e.candidate)]

    def _may(self, candidate: Candidate) -> bool:
        """Whether it may be measured: members, and the device's versions of seeds even outside of the space."""
        if candidate in self._left_out or not (self._space.contains(candidate) or candidate in self._seeds):
            return False
        return candidate.compile_key not in self._ruled_out

    def _affordable(self, spent: float, candidates: Sequence[Candidate], windows: int) -> bool:
        return spent + self._costs.predict(candidates, windows) <= self._budget

    def _reserve(self, best: Candidate) -> float:
        """Seconds to reserve for the race: two rounds of the best and a seed."""
        seed = next((s for s in self._seeds if s in self._estimates and s != best), best)
        return min(_RESERVED * self._budget, self._costs.predict((best, seed, best, seed), WINDOWS))

    def _concluded(self) -> Outcome:
        points = self._estimates.ranking()
        return conclude(self._goal, points, self._contenders(), self._seeds, self._left_out)

    def _contenders(self) -> list[Estimate]:
        """The candidates to choose from, the best first: seeds, and those that raced.

        Confirmed candidates that beat all of these count as well: there was no time for another race.
        """
        ranked = self._ranked()
        confirmed = [e for e in ranked if e.windows >= CONFIRMED or e.candidate in self._seeds] or ranked
        raced = [e for e in confirmed if e.candidate in self._raced or e.candidate in self._seeds]
        if raced and raced[0].rank[0] == confirmed[0].rank[0] and raced[0].may_beat(confirmed[0]):
            return raced
        return confirmed
