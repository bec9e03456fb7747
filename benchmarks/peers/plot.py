"""Draws the results: responses a second of every server for each model, and where they kept the objective."""

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.peers.report import NAMES
from benchmarks.peers.results import BENCHMARK_APP, BENCHMARK_APP_DEFAULTS, ECHO, INFERD, INFERD_MAPPED, Results, Spread

_BLUE, _PALE, _GREY, _LIGHT, _INK = "#1f5fa8", "#9dbbe0", "#8a8a8a", "#d2d2d2", "#222222"

_FAR = 1.5
"""Multiple of the highest served rate at which benchmark_app's bar is cut off."""


def draw(results: Results, file: Path) -> None:
    """Write the picture to ``file``."""
    models = results.models()
    most = max(len(results.subjects(model)) for model in models)
    rows = -(-len(models) // 2)
    figure = Figure(figsize=(11, (0.34 * most + 1.0) * rows), dpi=160, layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).flat
    for model, axes in zip(models, panels, strict=False):
        # The echo computes nothing: its rate says nothing about this model.
        subjects = [s for s in results.subjects(model) if s.server != ECHO]
        served, reference = 0.0, None
        for place, subject in enumerate(subjects):
            own = subject.server in {INFERD, INFERD_MAPPED}
            best = Spread.of(results.best(model, subject).values())
            kept = Spread.of(results.goodput(model, subject).values())
            if best is None:
                continue
            axes.barh(place, best.middle, 0.7, color=_PALE if own else _LIGHT)
            if subject.server in {BENCHMARK_APP, BENCHMARK_APP_DEFAULTS}:
                axes.barh(place, best.middle, 0.7, color=_LIGHT, hatch="//", edgecolor="white")
                reference = max(reference or best, best, key=lambda spread: spread.high)
            elif kept is not None:
                axes.barh(place, kept.middle, 0.7, color=_BLUE if own else _GREY)
            axes.plot([best.low, best.high], [place, place], color=_INK, linewidth=1)
            served = max(served, 0.0 if subject.server in {BENCHMARK_APP, BENCHMARK_APP_DEFAULTS} else best.high)
            axes.text(
                min(best.high, _FAR * served or best.high),
                place,
                f"  {best.middle:,.0f}",
                va="center",
                fontsize=8,
                color=_INK,
            )
        axes.set_yticks(
            range(len(subjects)), [f"{NAMES.get(s.server, s.server).strip('`')}, {s.way}" for s in subjects]
        )
        axes.tick_params(axis="y", labelsize=8, length=0)
        axes.invert_yaxis()
        axes.set_title(model, loc="left", fontsize=11)
        axes.set_xlabel("answers a second", fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.margins(x=0.12)
        if reference is not None and served and reference.high > _FAR * served:
            # benchmark_app does not serve and may be far beyond: its bar is cut off, and its figure remains.
            axes.set_xlim(0, _FAR * served * 1.15)
        axes.spines[["top", "right", "left"]].set_visible(False)
    for axes in list(panels):
        axes.set_visible(False)
    figure.suptitle(
        "Most answers a second (pale, with the spread over rounds) and those within the p99 objective (dark)",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    figure.savefig(file)
