"""Draws the result of overload.py: goodput and latency over the offered load.

python -m benchmarks.plot_overload build/bench/overload.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK, _BLUE, _GREY, _RED = "#222222", "#1f5fa8", "#8a8a8a", "#c0392b"
_CURVES = (("without_objective", _GREY, "without an objective"), ("with_objective", _BLUE, "with an objective"))


def draw(report: dict[str, Any], file: Path) -> None:
    """Write the picture of ``report``, the content of overload.json, to ``file``, sharp at 900 pixels wide."""
    figure = Figure(figsize=(9, 6.4), dpi=200, layout="constrained")
    goodput, latency = figure.subplots(2, 1, sharex=True)
    latency.set_yscale("log")
    latency.set_xscale("log", base=2)
    _limit(goodput, 1, "capacity", _INK)
    _limit(latency, report["objective"] * 1000, f"objective, {report['objective'] * 1000:g} ms", _RED)
    for key, color, which in _CURVES:
        if levels := report[key]:
            _curve(goodput, levels, "goodput", 1 / report["capacity"], color, "-", which)
            _curve(latency, levels, "p99", 1000, color, "-", f"p99 {which}")
            _curve(latency, levels, "p50", 1000, color, "--", f"p50 {which}")
    goodput.set_ylabel("goodput / capacity")
    goodput.set_ylim(0, 1.2)
    latency.set_ylabel("latency of answers, ms")
    latency.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    latency.set_xlabel("offered load / capacity")
    loads = [level["load"] for level in report["with_objective"]]
    latency.set_xticks(loads, [f"{load:g}" for load in loads])
    latency.minorticks_off()
    for axes in (goodput, latency):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, fontsize=10, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(file)


def _curve(
    axes: Axes, levels: list[dict[str, Any]], value: str, scale: float, color: str, style: str, label: str
) -> None:
    # A load at which nothing was answered has no quantiles: the curve has a gap there.
    heights = [np.nan if level[value] is None else level[value] * scale for level in levels]
    axes.plot(
        [level["load"] for level in levels],
        heights,
        style,
        color=color,
        marker="o",
        markersize=5,
        label=label,
        clip_on=False,
    )


def _limit(axes: Axes, height: float, name: str, color: str) -> None:
    axes.axhline(height, color=color, linewidth=1, linestyle=":")
    place = axes.get_yaxis_transform()
    axes.text(0.005, height, name, color=color, fontsize=10, va="bottom", ha="left", transform=place)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(json.loads(source.read_text()), source.with_suffix(".png"))
