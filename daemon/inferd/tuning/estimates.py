"""All measurements, and the estimates drawn from them: how good each candidate is, with which confidence."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import sqrt
from statistics import fmean, median
from typing import Literal

from inferd.tuning.candidates import Candidate
from inferd.tuning.goal import Goal, GoalVerdict, judge
from inferd.tuning.measurement import MeasurementWindow, percentile, undisturbed

# Two-sided, 95 %.
_Z = 1.96
# Windows never count as agreeing better than this: slow disturbances don't show within seconds.
_LEAST_NOISE = 0.01
# The prior for the noise, and its weight in windows.
_USUAL_NOISE, _BELIEF = 0.05, 4
# The fewest windows that say anything about how windows differ.
_TO_COMPARE = 3
# This many windows measured alongside other candidates replace all earlier ones.
_ENOUGH = 4

Score = Literal["goodput", "speed", "tail"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate for one candidate. Rates are answers per second, latencies seconds.

    ``goodput`` counts the answers in time, with the 95 % confidence bounds ``low`` and ``high``.
    ``share`` is the fraction in time, ``kept`` whether that is enough, ``tail`` the latency at the
    objective's percentile. ``score`` ranks candidates, higher is better; it only compares candidates
    that all miss the objective or all don't. ``doubt`` is half the width of its confidence interval,
    as a fraction of the score.
    """

    candidate: Candidate
    windows: int
    answers: int
    goodput: float
    low: float
    high: float
    throughput: float
    median: float
    tail: float
    share: float
    kept: bool
    verdict: GoalVerdict
    score: float
    doubt: float

    @property
    def eligible(self) -> bool:
        """Whether it may be chosen: not if the evidence says that it misses the objective."""
        return self.verdict is not GoalVerdict.MISSES

    @property
    def rank(self) -> tuple[int, float]:
        """Orders candidates, the best last: those that may meet the objective rank below those that do so far."""
        return (self.eligible + (self.eligible and self.kept)), self.score

    def ahead(self, other: "Estimate") -> float:
        """The lead over ``other`` in score, as a fraction of the higher score; negative if it trails."""
        higher = max(self.score, other.score)
        return (self.score - other.score) / higher if higher else 0.0

    def doubt_with(self, other: "Estimate") -> float:
        """Half the width of the confidence interval of :meth:`ahead`."""
        return sqrt(self.doubt**2 + other.doubt**2)

    def may_beat(self, other: "Estimate") -> bool:
        """Whether, by the evidence, this one may be at least as good as ``other``."""
        return self.eligible == other.eligible and self.ahead(other) >= -self.doubt_with(other)


@dataclass(slots=True)
class _Point:
    """One candidate's windows; those from index ``fresh`` on were measured alongside other candidates."""

    windows: list[MeasurementWindow] = field(default_factory=list)
    fresh: int = 0
    reading: "_Reading | None" = None


@dataclass(frozen=True, slots=True)
class _Reading:
    """What one candidate's windows say by themselves. ``values`` has one entry per window and kind of score;
    ``residuals`` are their deviations from the mean, as fractions of it."""

    answers: int
    throughput: float
    median: float
    tail: float
    share: float
    verdict: GoalVerdict
    kind: Score
    values: Mapping[Score, list[float]]
    residuals: Mapping[Score, list[float]]


class Estimates:
    """The estimates for all candidates measured so far."""

    def __init__(self, goal: Goal) -> None:
        self.goal = goal
        self._points: dict[Candidate, _Point] = {}
        # Recomputed on the first access after a change.
        self._estimates: dict[Candidate, Estimate] = {}
        self._ranking: list[Estimate] = []

    def add(self, candidate: Candidate, windows: Iterable[MeasurementWindow]) -> None:
        """Add windows measured for ``candidate``."""
        point = self._points.setdefault(candidate, _Point())
        point.windows += windows
        point.reading = None
        self._forget()

    def drop(self, candidate: Candidate) -> None:
        """``candidate`` has failed: discard its measurements."""
        self._points.pop(candidate, None)
        self._forget()

    def refresh(self, candidates: Iterable[Candidate]) -> None:
        """Score these by measurements from now on, once there are enough.

        A leader after many measurements owes part of its lead to luck, and machines drift: a fair
        comparison needs windows measured for it, in turns.
        """
        for candidate in candidates:
            self._points[candidate].fresh = len(self._points[candidate].windows)

    def windows(self, candidate: Candidate) -> int:
        """The number of windows measured for it."""
        return len(self._points[candidate].windows) if candidate in self._points else 0

    def __contains__(self, candidate: Candidate) -> bool:
        return candidate in self._points

    def __getitem__(self, candidate: Candidate) -> Estimate:
        return self._all()[candidate]

    def ranking(self) -> Sequence[Estimate]:
        """All estimates, the best first; of two equally good ones, the one that takes fewer resources."""
        if not self._ranking:
            self._ranking = sorted(self._all().values(), key=lambda e: (-e.rank[0], -e.rank[1], e.candidate))
        return self._ranking

    def noise(self, kind: Score) -> float:
        """The relative deviation between windows of one candidate: one figure for all candidates.

        Each candidate has few windows, all of them together have many. Based on the median, so that a
        few disturbed windows don't count.
        """
        all_ = [self._read(candidate, point).residuals[kind] for candidate, point in self._points.items()]
        residuals = [abs(r) for own in all_ for r in own]
        freedom = len(residuals) - sum(map(bool, all_))
        seen = 1.4826 * median(residuals) if residuals else 0.0
        squared = (_BELIEF * _USUAL_NOISE**2 + freedom * seen**2) / (_BELIEF + freedom)
        return max(_LEAST_NOISE, sqrt(squared))

    def _forget(self) -> None:
        self._estimates, self._ranking = {}, []

    def _all(self) -> dict[Candidate, Estimate]:
        if not self._estimates:
            noise: dict[Score, float] = {kind: self.noise(kind) for kind in ("goodput", "speed", "tail")}
            for candidate, point in self._points.items():
                self._estimates[candidate] = self._estimate(candidate, point, noise)
        return self._estimates

    def _estimate(self, candidate: Candidate, point: _Point, noise: Mapping[Score, float]) -> Estimate:
        seen = self._read(candidate, point)
        goodput, count = fmean(seen.values["goodput"]), len(seen.values["goodput"])
        half = _Z * noise["goodput"] / sqrt(count)
        return Estimate(
            candidate=candidate,
            windows=len(point.windows),
            answers=seen.answers,
            goodput=goodput,
            low=goodput * max(0.0, 1 - half),
            high=goodput * (1 + half),
            throughput=seen.throughput,
            median=seen.median,
            tail=seen.tail,
            share=seen.share,
            kept=seen.share >= self.goal.percentile / 100,
            verdict=seen.verdict,
            score=1 / seen.tail if seen.kind == "tail" else fmean(seen.values[seen.kind]),
            doubt=_Z * noise[seen.kind] / sqrt(count),
        )

    def _read(self, candidate: Candidate, point: _Point) -> _Reading:
        if point.reading is None:
            point.reading = self._reading(candidate, point)
        return point.reading

    def _reading(self, candidate: Candidate, point: _Point) -> _Reading:
        sound = undisturbed(point.windows)
        fresh = point.windows[point.fresh :]
        counting = undisturbed(fresh) if len(fresh) >= _ENOUGH else sound
        latencies = sorted(chain.from_iterable(w.latencies for w in sound))
        latency, percent = self.goal.latency, self.goal.percentile
        in_time = sum(w.within(latency) for w in sound)
        if not latencies:
            verdict = GoalVerdict.MISSES
        elif latency is None:
            verdict = GoalVerdict.KEEPS
        else:
            verdict = judge(in_time, len(latencies), self._independent(candidate, sound), percent)
        kind: Score = "goodput" if self.goal.kind == "throughput" else "speed"
        values: dict[Score, list[float]] = {
            "goodput": [w.within(latency) / w.seconds for w in counting],
            "speed": [1 / percentile(w.latencies, 50) for w in counting],
            "tail": [1 / percentile(w.latencies, percent) for w in counting],
        }
        return _Reading(
            answers=len(latencies),
            throughput=fmean(w.rate for w in counting),
            median=percentile(latencies, 50),
            tail=percentile(latencies, percent),
            share=in_time / len(latencies) if latencies else 0.0,
            verdict=verdict,
            kind="tail" if verdict is GoalVerdict.MISSES else kind,
            values=values,
            residuals={kind: _residuals(seen) for kind, seen in values.items()},
        )

    def _independent(self, candidate: Candidate, windows: Sequence[MeasurementWindow]) -> float:
        """The effective number of independent answers: those of one run depend on each other, as may those of a window.

        If the share in time varies more between windows than chance explains, the ratio is the design
        effect of cluster sampling.
        """
        answered = [w for w in windows if w.latencies]
        runs = sum(len(w.latencies) for w in answered) / candidate.batch
        if len(answered) < _TO_COMPARE:
            return runs
        shares = [w.within(self.goal.latency) / len(w.latencies) for w in answered]
        mean = fmean(shares)
        seen = sum((share - mean) ** 2 for share in shares) / (len(shares) - 1)
        by_chance = mean * (1 - mean) * len(shares) / runs
        return runs / max(1.0, seen / by_chance) if by_chance > 0 else runs


def _residuals(values: Sequence[float]) -> list[float]:
    """Each value's relative deviation from the mean, with Bessel's correction; empty for a single value."""
    mean, count = fmean(values), len(values)
    if count < 2 or not mean:
        return []
    return [(v / mean - 1) * sqrt(count / (count - 1)) for v in values]
