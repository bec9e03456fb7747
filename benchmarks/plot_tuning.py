"""Draws the result of tuning.py: the tuner's choice and OpenVINO's hints next to the sweep's best.

python -m benchmarks.plot_tuning build/bench/tuning.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_SIDES = (
    ("choice_goodput", "#1f5fa8", "the tuner's choice"),
    ("throughput_hint_goodput", "#8a8a8a", "THROUGHPUT hint"),
    ("latency_hint_goodput", "#c9c9c9", "LATENCY hint"),
)


def draw(report: dict[str, Any], file: Path) -> None:
    """Write the picture of ``report``, the content of tuning.json, to ``file``."""
    rows = report["rows"]
    figure = Figure(figsize=(9, 0.55 * len(rows) + 1.8), dpi=200, layout="constrained")
    axes = figure.subplots()
    height = 0.26
    for place, (key, color, label) in enumerate(_SIDES):
        axes.barh(
            [number + (place - 1) * height for number in range(len(rows))],
            [row[key] / row["best_goodput"] if row["best_goodput"] else 0.0 for row in rows],
            height,
            color=color,
            label=label,
        )
    axes.axvline(1, color="#c0392b", linestyle=":", label="best of the sweep")
    axes.set_yticks(
        range(len(rows)),
        [f"{r['model']}, {r['objective']}" + ("" if r["reachable"] else " (out of reach)") for r in rows],
    )
    axes.invert_yaxis()
    axes.set_xlabel("goodput / goodput of the best point of the sweep, measured in turn")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=4)
    figure.savefig(file)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(json.loads(source.read_text()), source.with_suffix(".png"))
