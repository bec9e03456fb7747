"""A search's result, with the reasons for the choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from inferd.tuning.candidates import Candidate
from inferd.tuning.estimates import Estimate
from inferd.tuning.goal import Goal, GoalVerdict
from inferd.tuning.race import choose

# How candidates are ranked without an objective.
_ASSUMED = {
    "throughput": "chosen by throughput, regardless of latency",
    "latency": "chosen by median latency",
}
# The names of the seeds, by position.
THROUGHPUT_HINT = "the THROUGHPUT hint's answer"
SEEDS = ("the LATENCY hint's answer", THROUGHPUT_HINT, "the stored winner")


@dataclass(frozen=True, slots=True)
class Gain:
    """The winner compared with a seed: ``ratio`` is above 1 if the winner is better at the goal.

    A seed that is not ``eligible`` misses the objective, whatever the ratio.
    """

    seed: Candidate
    name: str
    ratio: float
    eligible: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """``winner`` is None if no candidate ran; ``out_of_reach`` if no measured candidate meets the objective.

    ``points`` are all measured candidates, the best first. ``left_out`` gives the reason for each
    candidate that is missing there: it failed, or the device changed it.
    """

    winner: Estimate | None
    reason: str
    goal: Goal
    out_of_reach: bool
    points: tuple[Estimate, ...]
    left_out: Mapping[Candidate, str]
    gains: tuple[Gain, ...]


def conclude(
    goal: Goal,
    points: Sequence[Estimate],
    contenders: Sequence[Estimate],
    seeds: Sequence[Candidate],
    left_out: Mapping[Candidate, str],
) -> Outcome:
    """Choose among ``contenders``, the best first; ``seeds`` are by position."""
    left_out = dict(left_out)
    if not contenders:
        reason = "nothing ran" + "".join(f"; {c.describe()}: {why}" for c, why in list(left_out.items())[:1])
        return Outcome(None, reason, goal, goal.latency is not None, tuple(points), left_out, ())
    winner = choose(contenders, seeds, by_latency=goal.kind == "latency")
    known = {e.candidate: e for e in points}
    gains = tuple(
        Gain(seed, name, _ratio(goal, winner, known[seed]), known[seed].eligible)
        for seed, name in zip(seeds, SEEDS, strict=False)
        if seed in known
    )
    out_of_reach = goal.latency is not None and not winner.eligible
    reason = _reason(goal, winner, gains)
    return Outcome(winner, reason, goal, out_of_reach, tuple(points), left_out, gains)


def _ratio(goal: Goal, winner: Estimate, seed: Estimate) -> float:
    if not winner.eligible:
        more, less = seed.tail, winner.tail
    elif goal.kind == "latency":
        more, less = seed.median, winner.median
    else:
        more, less = winner.goodput, seed.goodput
    # If neither answered anything, they are equal.
    return 1.0 if more == less else more / less if less else inf


def _reason(goal: Goal, winner: Estimate, gains: Sequence[Gain]) -> str:
    share = ""
    if goal.latency is not None:
        share = f", {100 * winner.share:.4g} % of the answers within {_seconds(goal.latency)}"
    if winner.verdict is GoalVerdict.UNSURE:
        share += ", based on few responses" if winner.kept else ", which may be too few"
    if not winner.answers:
        text = f"no candidate responded while measured; {winner.candidate.describe()} needs the fewest resources"
    elif not winner.eligible:
        text = f"no measured candidate answers {goal.percentile:g} % within {_seconds(goal.latency or 0.0)}; "
        text += f"{winner.candidate.describe()} comes closest, with {_seconds(winner.tail)}"
    elif goal.kind == "latency":
        text = f"{winner.candidate.describe()} has the lowest median latency, {_seconds(winner.median)}"
        text += share
    else:
        text = f"{winner.candidate.describe()} gives {winner.goodput:.4g} answers/s"
        text += f" ({winner.low:.4g} to {winner.high:.4g}){share}"
    if goal.latency is None:
        text = f"no objective: {_ASSUMED[goal.kind]}; {text}"
    for gain in gains:
        if gain.seed == winner.candidate:
            text += f"; it is {gain.name}"
        elif winner.eligible and not gain.eligible:
            text += f"; {gain.name} {'answered nothing' if goal.latency is None else 'misses the objective'}"
        else:
            text += f"; {gain.ratio:.2f} times as good as {gain.name}"
    return text


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
