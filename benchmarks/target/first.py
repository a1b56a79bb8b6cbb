"""What first plans measure, chosen with and without what operations take inside of models.

    python -m benchmarks.target.first [--model NAME] [--runtime NAME]

Both models of cost are fitted to the same measurements of the same whole models. Each chooses a plan for
every speed-up, and all plans are measured beside the dense model. Losses follow from weight norms. Writes
``docs/benchmarks/target_first.json`` and ``target_first.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.target.__main__ import ASKED, CONVOLUTIONAL, OUT, RUNTIMES
from benchmarks.target.subjects import SUBJECTS
from benchmarks.target.where import where

from prunekit.measure import Target, compare_latency, environment
from prunekit.plan.figures import Limit
from prunekit.plan.knapsack import choose
from prunekit.surgery import reduced_graph
from prunekit.targeting import Planner, Space, Timing, measure_target
from prunekit.targeting.costs import costs_of, tag
from prunekit.targeting.latency_model import fit_latency_model

THREADS = 2
SECONDS = 6.0


def measure(name: str, runtime: str, scratch: Path) -> Iterator[dict[str, Any]]:
    """A row for each speed-up and model of cost."""
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    subject = SUBJECTS[name]()
    folder = scratch / "".join(letter if letter.isalnum() else "-" for letter in name)
    folder.mkdir(parents=True, exist_ok=True)
    planner = measure_target(
        subject.model,
        subject.args,
        subject.kwargs,
        target=Target(runtime, threads=THREADS),  # pyright: ignore[reportArgumentType]
        space=Space(subject.granularity),
        timing=Timing(real_time=True, folder=folder, tables=scratch / "tables"),
    )
    latency = planner.costs.latency
    apart = fit_latency_model(latency.times, [replace(model, parts={}) for model in latency.models])
    dense_ms, seconds = planner.costs.dense_ms, planner.costs.seconds
    costs = costs_of(planner.costs.computation, apart, dense_ms=dense_ms, seconds=seconds)
    for asked in ASKED:
        for by, each in (("with", planner), ("without", replace(planner, costs=costs))):
            yield {"model": name, "runtime": runtime, "asked": asked, "by": by, **_first(each, asked)}


def _first(planner: Planner, asked: float) -> dict[str, Any]:
    """The plan that a planner would try first, measured."""
    costs, rig = planner.costs, planner.rig
    bound = costs.ms.at(np.zeros(len(costs.levers), dtype=int)) / asked
    chosen = choose(planner.losses, [Limit(costs.ms, bound)], costs.sizes, seconds=10)
    assert chosen is not None, "these models can be four times as fast"
    keep = costs.levers.masks(chosen.levels)
    dense = rig.artifact(planner.model, "dense")
    small = rig.artifact(reduced_graph(planner.model, keep, planner.groups), f"plan-{tag(keep)}")
    with rig.quietly():
        found = compare_latency(
            rig.open_artifact(dense), rig.open_artifact(small), min_seconds=SECONDS, max_seconds=4 * SECONDS
        ).speedup
    return {
        "measured": round(found.median, 4),
        "low": round(found.low, 4),
        "high": round(found.high, 4),
        "loss": round(chosen.objective, 5),
        "environment": environment(THREADS),
    }


def page(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [
        "# First plans, with and without times inside of models",
        "",
        "`python -m benchmarks.target.first`: two models of cost, fitted to the same whole models, one of",
        "them also to what operations took inside of these. Each chooses the plan of least loss that it",
        "predicts to be as fast as asked; what that measured, with its 95 % interval, batch 1, two threads.",
        "",
        "| model | runtime | by | " + " | ".join(f"{asked:g}x" for asked in ASKED) + " |",
        "|---|---|---|" + "---:|" * len(ASKED),
    ]
    cells: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        told = f"{row['measured']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        cells.setdefault((row["model"], row["runtime"], row["by"]), []).append(told)
    for (model, runtime, by), told in cells.items():
        lines.append(f"| {model} | {runtime} | {by} | {' | '.join(told)} |")
    apart = {
        by: np.median([abs(row["measured"] / row["asked"] - 1) for row in rows if row["by"] == by])
        for by in ("with", "without")
    }
    lines += [
        "",
        f"They were apart from what was asked by {apart['with']:.1%} with these times and by",
        f"{apart['without']:.1%} without (medians).",
        "",
        *where([row["environment"] for row in rows]),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SUBJECTS, action="append")
    parser.add_argument("--runtime", choices=RUNTIMES, action="append")
    given = parser.parse_args()
    scratch = Path(os.environ.get("PRUNEKIT_SCRATCH") or Path(tempfile.gettempdir()) / "prunekit-target")
    store = OUT / "target_first.json"
    rows = json.loads(store.read_text()) if store.exists() else []
    for name in given.model or CONVOLUTIONAL[1:]:
        for runtime in given.runtime or RUNTIMES:
            new = list(measure(name, runtime, scratch))
            rows = [row for row in rows if (row["model"], row["runtime"]) != (name, runtime)] + new
            store.write_text(json.dumps(rows, indent=1) + "\n")
            (OUT / "target_first.md").write_text(page(rows))
    print(page(rows))


if __name__ == "__main__":
    main()
