"""Draws the result of growth.py: throughput, latency, CPU and memory over what grew.

python -m benchmarks.plot_growth build/bench/growth.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

_BLUE, _PALE, _GRID = "#1f5fa8", "#9dbbe0", "#e4e4e4"
_NAMES = {
    "in flight": "requests in flight",
    "connections": "connections, 32 in flight",
    "models": "models, 32 in flight",
    "workers": "workers, 32 in flight",
}
_ROWS = (
    ("answers a second", (("throughput", 1.0, "-", _BLUE),)),
    ("latency, ms", (("p99", 1e3, "-", _BLUE), ("p50", 1e3, "--", _PALE))),
    ("daemon's CPU an answer, us", (("cpu", 1e6, "-", _BLUE),)),
    ("resident, MiB", (("resident", 2.0**-20, "-", _BLUE),)),
)


def draw(report: dict[str, Any], file: Path) -> None:
    """Write the picture of ``report``, the content of growth.json, to ``file``."""
    series = list(dict.fromkeys(step["series"] for step in report["steps"]))
    figure = Figure(figsize=(11, 8.5), dpi=160, layout="constrained")
    panels = figure.subplots(len(_ROWS), len(series), squeeze=False, sharex="col")
    for column, name in enumerate(series):
        steps = [step for step in report["steps"] if step["series"] == name]
        counts = [step["count"] for step in steps]
        for row, (label, curves) in enumerate(_ROWS):
            axes = panels[row][column]
            for key, scale, style, color in curves:
                heights = [step[key] * scale for step in steps]
                axes.plot(counts, heights, style, color=color, marker="o", markersize=4, label=key)
            axes.set_xscale("log")
            if label.startswith("latency"):
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                axes.legend(frameon=False, fontsize=8)
            else:
                axes.set_ylim(0, 1.1 * max(step[key] * scale for step in steps for key, scale, *_ in curves))
            axes.set_xticks(counts, [f"{count:,}" for count in counts], fontsize=8)
            axes.minorticks_off()
            axes.tick_params(axis="y", labelsize=8)
            axes.grid(axis="y", color=_GRID, linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axes.set_ylabel(label, fontsize=9)
            if row == len(_ROWS) - 1:
                axes.set_xlabel(_NAMES[name], fontsize=9)
    figure.savefig(file)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(json.loads(source.read_text()), source.with_suffix(".png"))
