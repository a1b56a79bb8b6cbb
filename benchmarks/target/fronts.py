"""Draws what plans lose over how fast they are, one panel for each model and one line for each way.

    python -m benchmarks.target.fronts

Reads ``docs/benchmarks/target_peers.json`` and writes ``target_peers.svg`` beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from benchmarks.target.fair import PEER
from matplotlib.figure import Figure

OUT = Path(__file__).parents[2] / "docs" / "benchmarks"
COLOURS = {
    "knapsack": "#1b6ca8",
    "isomorphic": "#2a9d8f",
    "global": "#c08a00",
    "uniform": "#8a8a8a",
    PEER: "#b3372f",
}
"""By way."""


def drawn(rows: list[dict[str, Any]]) -> Figure:
    """The panels; what was not reached is not in them."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(5 * len(models), 3.6), layout="constrained")
    for place, model in enumerate(models):
        axes = figure.add_subplot(1, len(models), place + 1)
        for way, colour in COLOURS.items():
            own = [row for row in rows if (row["model"], row["way"]) == (model, way) and "increase" in row]
            own.sort(key=lambda row: row["measured"])
            if own:
                speed = [1.0, *(row["measured"] for row in own)]  # From the dense model on.
                lost = [0.0, *(row["increase"] for row in own)]
                axes.plot(speed, lost, marker="o", markersize=4, color=colour, label=way)
        axes.set_title(model, loc="left", fontsize=10)
        axes.set_xlabel("measured speed-up")
        axes.set_ylabel("increase of the loss")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    return figure


def draw_fronts(rows: list[dict[str, Any]]) -> None:
    """Write the picture."""
    mpl.rcParams["svg.hashsalt"] = "prunekit"  # The same picture from the same figures.
    mpl.rcParams["svg.fonttype"] = "none"
    drawn(rows).savefig(OUT / "target_peers.svg", metadata={"Date": None})


if __name__ == "__main__":
    draw_fronts(json.loads((OUT / "target_peers.json").read_text()))
