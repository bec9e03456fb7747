"""Draws runs: latency over throughput, and the latency distribution. matplotlib is imported when it is needed."""

from collections.abc import Sequence
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING

from inferd.bench.load import Closed, Load
from inferd.bench.report import BenchRun
from inferd.errors import ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = ((50.0, "o-", "tab:blue"), (99.0, "s-", "tab:orange"), (99.9, "^-", "tab:purple"))
# Of two runs each has a colour; the marks tell the percentiles apart.
_RUNS = ("tab:blue", "tab:orange")
# Where the distribution is sampled: finer towards the tail, like its axis.
_NINES = 3.0
_POINTS = 90
# More curves than this can't be told apart.
_MOST_CURVES = 6


def draw(runs: Sequence[BenchRun], file: Path, names: Sequence[str] = ("",)) -> None:
    """Write the plot of ``runs`` to ``file``, in the format of its ending. Raises ConfigurationError if the file can't
    be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5.8), layout="constrained")
    load, spread = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1.15, 1]})
    _latency_over_throughput(load, runs, names)
    _spread(spread, runs, names)
    for axes in (load, spread):
        if not any(step.window.latencies.count for run in runs for step in run.steps):
            # The logarithm of zero is an error.
            axes.set_ylim(1, 1000)
        _milliseconds(axes)
        axes.grid(visible=True, which="both", alpha=0.25, linewidth=0.6)
    figure.suptitle(runs[0].title if len(runs) == 1 else f"{runs[0].model}: {' and '.join(names)}", fontsize=12)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=110)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigurationError("flag --plot", "", f"{file} can't be written: {why}") from None


def _latency_over_throughput(axes: "Axes", runs: Sequence[BenchRun], names: Sequence[str]) -> None:
    for own, run, name in zip(_RUNS, runs, names, strict=False):
        for percentile, mark, colour in _LINES:
            axes.plot(
                [s.window.throughput for s in run.steps],
                [_value(s.window.latencies.quantile(percentile)) for s in run.steps],
                mark,
                color=colour if len(runs) == 1 else own,
                markersize=4.5,
                linewidth=1.4,
                label=f"{name} p{percentile:g}".strip(),
            )
        for step in run.steps:
            median = step.window.latencies.quantile(50)
            if median is not None:
                axes.annotate(
                    _short(step.load),
                    (step.window.throughput, median * 1000),
                    xytext=(0, -13),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color=own,
                )
    if (objective := runs[0].objective) is not None:
        label = f"objective: {objective.describe()}"
        axes.axhline(objective.latency * 1000, color="tab:red", linestyle="--", linewidth=1, label=label)
    axes.set_xlim(left=0)
    axes.margins(y=0.12)
    axes.set_xlabel("answers a second")
    axes.set_ylabel("latency, ms")
    kinds = {"requests in flight" if isinstance(s.load, Closed) else "requests a second" for r in runs for s in r.steps}
    axes.set_title(f"latency over throughput; at the points: {' or '.join(sorted(kinds))}", fontsize=10)
    _legend(axes)


def _spread(axes: "Axes", runs: Sequence[BenchRun], names: Sequence[str]) -> None:
    from matplotlib import colormaps

    loads = list(dict.fromkeys(step.load for run in runs for step in run.steps))
    for run, name, style in zip(runs, names, ("-", "--"), strict=False):
        # Evenly from first to last if there are too many.
        count = min(_MOST_CURVES, len(run.steps))
        for step in (run.steps[round(i * (len(run.steps) - 1) / max(1, count - 1))] for i in range(count)):
            latencies = step.window.latencies
            # So few responses say nothing about percentiles beyond this.
            known = min(_NINES, log10(max(1, latencies.count)))
            nines = [known * i / _POINTS for i in range(_POINTS + 1)]
            axes.plot(
                nines,
                [_value(v) for v in latencies.quantiles([100 * (1 - 10**-n) for n in nines])],
                style,
                color=colormaps["viridis"](0.9 * loads.index(step.load) / max(1, len(loads) - 1)),
                linewidth=1.4,
                label=f"{name} {step.load.describe()}".strip(),
            )
    axes.set_xticks([0, 0.30103, 1, 2, 3], ["0", "50", "90", "99", "99.9"])
    axes.set_xlabel("per cent of responses within this latency")
    axes.set_title("latency distribution", fontsize=10)
    _legend(axes)


def _legend(axes: "Axes") -> None:
    # Below the axes, where it hides nothing.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4, fontsize=8, frameon=False)


def _milliseconds(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    # Plain numbers, at 1, 2 and 5 of each decade; matplotlib's default is 2x10^1.
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.12g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _value(seconds: float | None) -> float:
    return float("nan") if seconds is None else seconds * 1000


def _short(load: Load) -> str:
    return str(load.concurrency) if isinstance(load, Closed) else f"{load.rate:g}"
