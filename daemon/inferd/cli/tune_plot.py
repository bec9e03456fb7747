"""Draws a profile: what was measured, the objective, and the choice. matplotlib is imported when it is needed."""

from pathlib import Path

from inferd.errors import ConfigurationError
from inferd.tuner.profile import Profile


def check() -> None:
    """Raises ConfigurationError where there is nothing to draw with."""
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "flag --plot", "", "drawing needs matplotlib, which is not installed; pip install 'inferd[plot]'"
        ) from None


def draw(profile: Profile, file: Path) -> None:
    """Write the plot of ``profile`` to ``file``, in the format of its ending. Raises ConfigurationError where
    that can't be written."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    kept = [p for p in profile.points if p.eligible]
    missed = [p for p in profile.points if not p.eligible]
    for points, colour, marker, label in (
        (kept, "tab:blue", "o", "measured" if profile.objective is None else "keeps the objective"),
        (missed, "tab:grey", "x", "answers nothing" if profile.objective is None else "misses it"),
    ):
        if points:
            axes.errorbar(
                [p.tail * 1000 for p in points],
                [p.goodput for p in points],
                yerr=[[p.goodput - p.low for p in points], [p.high - p.goodput for p in points]],
                fmt=marker,
                color=colour,
                label=label,
                capsize=2,
                linewidth=0.8,
            )
    if (chosen := profile.chosen) is not None:
        axes.plot(
            chosen.tail * 1000,
            chosen.goodput,
            "*",
            markersize=18,
            color="tab:red",
            label=f"chosen: {chosen.candidate.describe()}",
            zorder=3,
        )
    if profile.objective is not None:
        axes.axvline(
            profile.objective * 1000,
            color="tab:red",
            linestyle="--",
            label=f"objective: {profile.objective * 1000:.3g} ms",
        )
    axes.set_xscale("log")
    # Numbers as people write them, at 1, 2 and 5 of each decade; left to itself it says 2x10^1.
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.12g}"))
    axes.set_xlabel(f"latency at {profile.percentile:g} %, ms")
    axes.set_ylabel("answers a second" if profile.objective is None else "answers in time a second")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.set_title(f"{profile.model} {profile.version} on {profile.device}: {len(profile.points)} candidates measured")
    axes.legend(loc="best", fontsize=8)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=110)
    except OSError as error:
        raise ConfigurationError("flag --plot", "", f"{file} can't be written: {error.strerror}") from None
