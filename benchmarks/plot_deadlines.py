"""Draws the result of deadlines.py: responses in time over the offered load.

python -m benchmarks.plot_deadlines build/bench/deadlines.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_COLORS = {"now": "#1f5fa8", "before": "#8a8a8a"}
_MARKS = {"deadline": "o", "mixed": "s", "all cores": "v", "objective": "^", "work": "D", "work, shared": "d"}


def draw(report: dict[str, Any], file: Path) -> None:
    """Write the picture of ``report``, the content of deadlines.json, to ``file``, sharp at 900 pixels wide."""
    figure = Figure(figsize=(9, 4.2), dpi=200, layout="constrained")
    axes = figure.subplots()
    rows = report["rows"]
    for scenario, mark in _MARKS.items():
        for which, color in _COLORS.items():
            own = [row for row in rows if (row["scenario"], row["which"]) == (scenario, which)]
            if own:
                loads, parts = [row["load"] for row in own], [row["part"] for row in own]
                spread = [[row["part"] - row["least"] for row in own], [row["most"] - row["part"] for row in own]]
                axes.errorbar(loads, parts, spread, color=color, marker=mark, capsize=3, label=f"{scenario}, {which}")
    axes.axhline(1, color="#222222", linewidth=0.8)
    axes.set_xscale("log", base=2)
    loads = sorted({row["load"] for row in rows})
    axes.set_xticks(loads, [f"{load:g}" for load in loads])
    axes.minorticks_off()
    axes.set_ylim(0, 1.15)
    axes.set_xlabel("offered load / capacity")
    axes.set_ylabel("in time / what can be had")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(file)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        draw(json.loads(Path(name).read_text()), Path(name).with_suffix(".png"))
