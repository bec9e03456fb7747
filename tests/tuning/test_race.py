"""Which candidates run, in which order, and which wins."""

from collections.abc import Sequence
from typing import Literal

from inferd.tuning.candidates import Candidate
from inferd.tuning.estimates import Estimate, Estimates
from inferd.tuning.goal import Goal
from inferd.tuning.measurement import MeasurementWindow
from inferd.tuning.race import Race, choose

A, B, C, D = (Candidate(1, 4, requests) for requests in (1, 2, 4, 8))


def windows(rate: int, many: int, noise: float = 0.0) -> list[MeasurementWindow]:
    """Some above ``rate``, some below."""
    return [MeasurementWindow(1.0, (0.01,) * round(rate * (1 + (noise if i % 2 else -noise)))) for i in range(many)]


def evidence_of(
    *rates: tuple[Candidate, int],
    many: int = 4,
    noise: float = 0.0,
    kind: Literal["throughput", "latency"] = "throughput",
) -> Estimates:
    estimates = Estimates(Goal(kind, 0.1))
    for candidate, rate in rates:
        estimates.add(candidate, windows(rate, many, noise))
    return estimates


def run(
    race: Race, estimates: Estimates, rates: dict[Candidate, int], affordable: int = 99, noise: float = 0.0
) -> list[Candidate]:
    """The order in which they ran."""
    ran: list[Candidate] = []

    def can(all_: Sequence[Candidate]) -> bool:
        return len(ran) + len(all_) <= affordable

    while (candidate := race.next(estimates, rates.__contains__, can)) is not None:
        ran.append(candidate)
        estimates.add(candidate, windows(rates[candidate], 2, noise))
    return ran


def ranked(estimates: Estimates) -> Sequence[Estimate]:
    return estimates.ranking()


def test_the_best_runs_against_its_rivals_and_the_best_seed_only() -> None:
    estimates = evidence_of((A, 500), (B, 995), (C, 1000), (D, 700))
    assert Race(ranked(estimates), [A, D]).contenders == [C, D, B]


def test_rounds_go_forth_and_back() -> None:
    estimates = evidence_of((A, 1000), (B, 1010), (C, 1020), noise=0.1)
    ran = run(Race(ranked(estimates), [A]), estimates, {A: 1000, B: 1010, C: 1020}, noise=0.1)
    assert ran[:6] == [C, A, B, B, A, C]


def test_whoever_falls_behind_is_out_and_a_race_of_one_is_over() -> None:
    estimates = evidence_of((A, 1000), (B, 1010))
    assert run(Race(ranked(estimates), [A]), estimates, {A: 800, B: 1010}) == [B, A]


def test_a_seed_that_is_the_best_beyond_doubt_need_not_run() -> None:
    estimates = evidence_of((A, 1000), (B, 500))
    assert run(Race(ranked(estimates), [A]), estimates, {A: 1000, B: 500}) == []


def test_a_race_ends_where_what_is_open_is_of_no_interest() -> None:
    estimates = evidence_of((A, 1000), (B, 1000), many=40)
    assert run(Race(ranked(estimates), [A]), estimates, {A: 1000, B: 1000}) in ([A, B], [B, A])


def test_a_race_of_equals_ends() -> None:
    estimates = evidence_of((A, 1000), (B, 1001), (C, 999), many=2)
    assert len(run(Race(ranked(estimates), [A]), estimates, {A: 1000, B: 1001, C: 999})) <= 36


def test_where_time_is_short_the_best_and_the_seed_run() -> None:
    estimates = evidence_of((A, 980), (B, 1000), (C, 990), (D, 995))
    assert run(Race(ranked(estimates), [A]), estimates, {A: 980, B: 1000, C: 990, D: 995}, affordable=2) == [B, A]


def test_whoever_can_not_be_asked_for_any_more_leaves_the_race() -> None:
    estimates = evidence_of((A, 1000), (B, 1001), (C, 1002))
    assert B not in run(Race(ranked(estimates), [A]), estimates, {A: 1000, C: 1002})


def test_of_those_about_as_good_the_one_that_takes_least_is_chosen() -> None:
    estimates = evidence_of((A, 900), (B, 990), (C, 1000), (D, 1005))
    assert choose(ranked(estimates), [], by_latency=False).candidate == B


def test_no_candidate_behind_a_seed_is_chosen() -> None:
    estimates = evidence_of((B, 990), (C, 1000), (D, 1005))
    assert choose(ranked(estimates), [C], by_latency=False).candidate == C


def test_of_two_that_take_as_much_the_seed_is_chosen() -> None:
    pinned = Candidate(1, 4, 2, pinning=True)
    estimates = evidence_of((B, 1000), (pinned, 1000))
    assert choose(ranked(estimates), [pinned], by_latency=False).candidate == pinned


def test_of_those_with_about_the_same_latency_the_one_with_more_throughput_is_chosen() -> None:
    estimates = evidence_of((A, 100), (B, 200), (C, 199), kind="latency")
    assert choose(ranked(estimates), [A], by_latency=True).candidate == B
