"""What ``inferd tune run`` shows while it searches and what it found, on terminals and elsewhere, and as a plot."""

import io
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from inferd.cli import tune_plot
from inferd.cli.tune_display import TuneDisplay
from inferd.errors import ConfigurationError
from inferd.tuner.profile import Profile, Sustained, profile_of
from inferd.tuner.session import Progress
from inferd.tuning.candidates import Candidate
from inferd.tuning.estimates import Estimate
from inferd.tuning.goal import Goal, GoalVerdict
from inferd.tuning.measurement import Measurement, MeasurementWindow
from inferd.tuning.outcome import Outcome
from inferd.tuning.search import Look

ONE = Candidate(1, 2, 1)
BEST = Candidate(2, 2, 8, 4, True, path="sync")


def estimate(candidate: Candidate, goodput: float = 400.0, *, eligible: bool = True) -> Estimate:
    return Estimate(
        candidate,
        windows=8,
        answers=800,
        goodput=goodput,
        low=0.975 * goodput,
        high=1.025 * goodput,
        throughput=1.1 * goodput,
        median=0.0101,
        tail=0.0202,
        share=0.995,
        kept=eligible,
        verdict=GoalVerdict.KEEPS if eligible else GoalVerdict.MISSES,
        score=goodput,
        doubt=0.02,
    )


def outcome(
    *points: Estimate, latency: float | None = 0.025, winner: Estimate | None = None, reason: str = "it is the best"
) -> Outcome:
    winner = winner or (points[0] if points else None)
    return Outcome(winner, reason, Goal("throughput", latency), False, points, {}, ())


def profile(found: Outcome, sustained: Sustained | None = None) -> Profile:
    made = profile_of("m", 1, "CPU", {}, found, 12.0, "now", sustained)
    assert made is not None
    return made


def progress(measured: Measurement | None, best: Estimate | None = None) -> Progress:
    return Progress(Look(ONE, 2, "the LATENCY hint's answer"), measured, best, 3, 12.34, 60.0)


def seen(*rates: int, failure: str | None = None) -> Measurement:
    windows = tuple(MeasurementWindow(1.0, (0.01,) * rate) for rate in rates)
    return Measurement(ONE, ONE, windows, 1.0, failure)


class Arrivals:
    """In the place of a probe: at each rate asked for, the part of the answers that are in time; None does not run."""

    def __init__(self, *parts: float | None) -> None:
        self._parts = iter(parts)
        self.asked: list[tuple[Candidate, float, float]] = []

    def arrive(self, candidate: Candidate, rate: float, seconds: float) -> MeasurementWindow | None:
        self.asked.append((candidate, rate, seconds))
        part = next(self._parts)
        return (
            None
            if part is None
            else MeasurementWindow(seconds, tuple([0.01] * round(1000 * part) + [9.0] * round(1000 * (1 - part))))
        )


def shown(show: Callable[[TuneDisplay], object], width: int = 100, *, terminal: bool = False) -> str:
    out = io.StringIO()
    show(TuneDisplay(Console(file=out, width=width, force_terminal=terminal, color_system=None), 60.0))
    return out.getvalue()


# -- while it goes on --------------------------------------------------------------------------


def searching(*steps: Progress) -> Callable[[TuneDisplay], None]:
    def show(display: TuneDisplay) -> None:
        with display.model("m", 1, "CPU", 24):
            for step in steps:
                display.tell(step)

    return show


def test_elsewhere_than_on_a_terminal_each_look_is_a_line() -> None:
    text = shown(searching(progress(None), progress(seen(100, 300, 200), estimate(BEST)), progress(None)), width=40)
    assert text.splitlines() == [
        "m 1 on CPU: 24 candidates, 60 s",
        "  12.3 s  1 stream, 2 threads, 1 request, batch 1, async: 200/s; best 2 streams, 2 threads, 8 requests, "
        "batch 4, pinned, sync",
    ]


def test_a_candidate_that_failed_is_shown_with_the_reason_as_it_was_given() -> None:
    # None of it is the console's markup.
    said = "[GENERAL_ERROR] [/src] can't be [bold]cast[/bold] to [1,3]"
    assert shown(searching(progress(seen(failure=said)))).splitlines()[1] == (
        f"  12.3 s  1 stream, 2 threads, 1 request, batch 1, async: {said}"
    )


def test_on_a_terminal_the_look_in_progress_and_the_best_so_far_are_kept_up_to_date() -> None:
    text = shown(searching(progress(None), progress(seen(100), estimate(BEST))), width=120, terminal=True)
    assert "m 1 on CPU: 24 candidates, 60 s" in text
    assert "1 stream, 2 threads, 1 request, batch 1, async (the LATENCY hint's answer)" in text
    assert "2 streams, 2 threads, 8 requests, batch 4, pinned, sync: 400/s in time, tail 20.2 ms" in text
    assert "3 looks" in text
    assert "48 s left at most" in text


def test_one_search_follows_the_other() -> None:
    def show(display: TuneDisplay) -> None:
        for name in ("m", "n"):
            with display.model(name, 1, "CPU", 24):
                display.tell(progress(None))

    for terminal in (False, True):
        text = shown(show, terminal=terminal)
        assert "m 1 on CPU" in text
        assert "n 1 on CPU" in text


# -- random arrivals ---------------------------------------------------------------------------


def checked(probe: Arrivals, found: Outcome, *, terminal: bool = False) -> tuple[Sustained | None, str]:
    held: list[Sustained | None] = []

    def show(display: TuneDisplay) -> None:
        with display.model("m", 1, "CPU", 24):
            held.append(display.check(probe, found))  # type: ignore[arg-type]
        display.result(found, profile(found, held[0]) if found.winner else None)

    text = shown(show, terminal=terminal)
    return held[0], text


def test_the_highest_rate_at_which_the_winner_keeps_the_objective_is_told() -> None:
    probe = Arrivals(0.5, 0.98, 0.995)
    held, text = checked(probe, outcome(estimate(BEST), estimate(ONE)))
    assert held == Sustained(240.0, 0.6, 0.995)
    assert probe.asked == [(BEST, rate, 3.0) for rate in (360.0, 300.0, 240.0)]
    assert "random arrivals of 240/s (60% of that): 99.5 % in time\n" in text
    assert "at none of the rates" not in text


def test_slow_models_are_given_the_time_for_a_hundred_arrivals() -> None:
    probe = Arrivals(1.0)
    checked(probe, outcome(estimate(BEST, 10.0)))
    [(_, rate, seconds)] = probe.asked
    assert rate == 9.0
    assert rate * seconds == pytest.approx(100)


def test_where_it_keeps_the_objective_at_none_of_them_that_is_told() -> None:
    held, text = checked(Arrivals(0.1, 0.2, 0.3, 0.4), outcome(estimate(BEST)))
    assert held is None
    assert "under random arrivals it keeps the objective at none of the rates that were tried\n" in text


@pytest.mark.parametrize(
    ("found", "tries"),
    [
        (outcome(estimate(BEST), latency=None), 0),
        (outcome(estimate(BEST, 0.0)), 0),
        (outcome(), 0),
        (outcome(estimate(BEST)), 1),
    ],
    ids=["no objective", "no answers", "no winner", "it does not run"],
)
def test_where_nothing_was_tried_nothing_is_said_of_arrivals(found: Outcome, tries: int) -> None:
    probe = Arrivals(None)
    held, text = checked(probe, found)
    assert held is None
    assert len(probe.asked) == tries
    assert "random arrivals" not in text


def test_on_a_terminal_the_rate_is_shown_while_it_is_tried() -> None:
    _, text = checked(Arrivals(1.0), outcome(estimate(BEST)), terminal=True)
    assert "checking 360 random arrivals a second" in text


# -- what was found ------------------------------------------------------------------------------


def result(found: Outcome, width: int = 100) -> list[str]:
    def show(display: TuneDisplay) -> None:
        with display.model("m", 1, "CPU", 24):
            pass
        display.result(found, profile(found) if found.winner else None)

    return [line.rstrip() for line in shown(show, width).splitlines()]


def row(lines: list[str], *first: str) -> list[str]:
    """The cells of the row that begins with these."""
    [cells] = [line.split() for line in lines if line.split()[: len(first)] == list(first)]
    return cells


def test_each_axis_of_a_candidate_has_a_column() -> None:
    points = (estimate(BEST), estimate(ONE, 123.456, eligible=False), estimate(replace(ONE, pinning=False), 98765.0))
    lines = result(outcome(*points))
    assert row(lines, "streams") == [
        *("streams", "threads", "requests", "batch", "pinned", "path"),
        *("/s", "95", "%", "ms", "ms", "keeps"),
    ]
    assert row(lines, "*") == [*("*", "2", "2", "8", "4", "yes", "sync"), *("400", "±2.5", "%", "10.1", "20.2", "yes")]
    assert row(lines, "1", "2", "1", "1", "auto") == [
        *("1", "2", "1", "1", "auto", "async"),
        *("123.5", "±2.5", "%", "10.1", "20.2", "no"),
    ]
    assert row(lines, "1", "2", "1", "1", "no")[6:7] == ["98765"]
    assert "it is the best" in lines


def test_without_an_objective_nothing_keeps_it_or_misses_it() -> None:
    assert row(result(outcome(estimate(BEST), latency=None)), "*")[-1] == "-"


def test_hyper_threading_and_core_types_have_columns_only_where_they_were_tried() -> None:
    with_one = " ".join(result(outcome(estimate(replace(BEST, hyper_threading=False)), estimate(ONE))))
    assert "hyper-" in with_one
    assert "cores" not in with_one
    kinds = result(outcome(estimate(replace(BEST, core_type="efficient")), estimate(ONE)))
    assert "hyper-" not in " ".join(kinds)
    assert row(kinds, "*")[7] == "efficient"
    assert row(kinds, "1")[6] == "auto"


WIDEST = Candidate(1024, 4096, 4096, 65536, False, True, "performance", "async")


@pytest.mark.parametrize(
    ("candidate", "width"), [(replace(WIDEST, hyper_threading=None, core_type=None), 80), (WIDEST, 100)]
)
def test_the_table_fits_a_terminal_whatever_is_in_it(candidate: Candidate, width: int) -> None:
    wide = replace(estimate(candidate, 1234567.0), median=12.345, tail=99.999, low=0.0, high=2345678.0)
    lines = result(outcome(wide), width)
    table = lines[: lines.index("it is the best")]
    assert max(map(len, table)) <= width
    cells = " ".join(row(lines, "*"))
    for figure in ("1024", "4096", "65536", "1234567", "±90.0 %", "12345", "99999"):
        assert figure in cells
    assert "…" not in "".join(table)


def test_the_best_few_are_shown_and_the_rest_counted() -> None:
    points = [estimate(Candidate(1, 1, n)) for n in range(1, 21)]
    lines = result(outcome(*points))
    assert "and 8 more" in lines
    assert row(lines, "*")[3] == "1"
    assert sum(line.endswith(" yes") for line in lines) == 12
    assert not any(line.startswith("and ") for line in result(outcome(*points[:12])))


def test_the_choice_is_shown_wherever_it_stands() -> None:
    # Of many about as good, it is the one that takes least.
    points = [estimate(Candidate(1, 1, n)) for n in range(1, 21)]
    lines = result(outcome(*points, winner=points[15]))
    assert row(lines, "*")[3] == "16"
    assert "and 7 more" in lines


def test_a_reason_is_shown_as_it_is_and_in_one_line() -> None:
    reason = "nothing ran; 1 stream: [GENERAL_ERROR] Check '[/x]' failed " + "at length " * 20
    assert reason.rstrip() in result(outcome(reason=reason))


# -- the plot ----------------------------------------------------------------------------------------

matplotlib = pytest.importorskip("matplotlib", reason="drawing is optional")


def drawn() -> Profile:
    points = [
        replace(
            estimate(replace(ONE, requests=n), 100.0 * n, eligible=n < 4),
            tail=0.004 * n,
            candidate=replace(ONE, requests=n),
        )
        for n in range(1, 6)
    ]
    return profile(outcome(*points))


def test_without_matplotlib_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tune_plot.check()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError) as missing:
        tune_plot.check()
    assert str(missing.value) == (
        "flag --plot: drawing needs matplotlib, which is not installed; pip install 'inferd[plot]'"
    )


def test_a_png_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "made" / "on the way" / "m-1.png"
    tune_plot.draw(drawn(), file)
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert (width, height) == (990, 605)


def texts(file: Path) -> list[str]:
    """What is written in an SVG, which matplotlib draws as outlines with the text in a comment."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    root = ElementTree.parse(file, parser).getroot()
    return [(e.text or "").strip() for e in root.iter() if e.tag is ElementTree.Comment]


def plotted(made: Profile, tmp_path: Path) -> list[str]:
    tune_plot.draw(made, tmp_path / "m-1.svg")
    return texts(tmp_path / "m-1.svg")


def test_an_svg_says_what_it_shows(tmp_path: Path) -> None:
    said = plotted(drawn(), tmp_path)
    assert {
        "m 1 on CPU: 5 candidates measured",
        "latency at 99 %, ms",
        "answers in time a second",
        "objective: 25 ms",
        "keeps the objective",
        "misses it",
        "chosen: 1 stream, 2 threads, 1 request, batch 1, async",
    } <= set(said)


def test_without_an_objective_none_is_drawn(tmp_path: Path) -> None:
    without = plotted(replace(drawn(), objective=None), tmp_path)
    assert {"answers a second", "measured"} <= set(without)
    assert not any("objective" in text or "in time" in text for text in without)


@pytest.mark.parametrize(
    ("tails", "ticks"),
    [
        ((0.004, 0.02, 0.3), ["5", "10", "20", "50", "100", "200"]),
        ((0.0002, 0.0009), ["0.2", "0.5"]),
        ((9.0, 40.0), ["10000", "20000"]),
        # So close together that there is no 1, 2 or 5 between them.
        ((0.0111, 0.0113), ["11.15", "11.2", "11.25"]),
    ],
)
def test_latencies_are_plain_numbers(tails: tuple[float, ...], ticks: list[str], tmp_path: Path) -> None:
    base = drawn()
    points = tuple(replace(base.points[0], tail=tail) for tail in tails)
    said = plotted(replace(base, points=points, objective=None), tmp_path)
    # Its axis comes first.
    axis = said[: said.index("latency at 99 %, ms")]
    assert set(ticks) <= set(axis)
    numbers = [float(text) for text in axis]
    assert all(one < other for one, other in pairwise(numbers))
    assert not any("10^" in text or "e" in text for text in axis)


def test_a_profile_without_points_is_still_drawn(tmp_path: Path) -> None:
    assert "m 1 on CPU: 0 candidates measured" in plotted(replace(drawn(), points=()), tmp_path)


def test_where_it_can_not_be_written_that_is_an_error_of_the_flag(tmp_path: Path) -> None:
    taken = tmp_path / "plots"
    taken.write_text("")
    with pytest.raises(ConfigurationError) as refused:
        tune_plot.draw(drawn(), taken / "m-1.svg")
    assert str(refused.value) == f"flag --plot: {taken}/m-1.svg can't be written: File exists"
