"""Speed-ups asked for and measured, on ONNX Runtime and OpenVINO.

    python -m benchmarks.target [--model NAME] [--runtime NAME] [--batch N] [--precision int8] [--again]

Every cell is a process of its own: a model, a runtime, a batch, in floats unless int8 is asked for. Its costs
are measured once and then 1.5, 2, 3 and 4 times the speed are asked for, to 3 %. Cells that are measured
stay. Timing is done with real-time scheduling where the process may, because the machine is shared. Writes
``docs/benchmarks/target.json`` and ``target.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.target.subjects import SUBJECTS
from benchmarks.target.where import where

from prunekit.targeting.operator_times import SCHEMA as ALONE
from prunekit.targeting.stored import SCHEMA

OUT = Path(__file__).parents[2] / "docs" / "benchmarks"
RUNTIMES = ("onnxruntime", "openvino")
BATCHES = (1, 8)
CONVOLUTIONAL = ("ResNet-50", "MobileNetV2", "EfficientNet-Lite0")
ASKED = (1.5, 2.0, 3.0, 4.0)
TOLERANCE = 0.03
HOURS = 1

Cell = dict[str, Any]


def main() -> None:
    """Measure what is missing and write the table."""
    parser = argparse.ArgumentParser(description="Speed-ups asked for and measured")
    parser.add_argument("--model", choices=SUBJECTS, action="append")
    parser.add_argument("--runtime", choices=RUNTIMES, action="append")
    parser.add_argument("--batch", type=int, choices=BATCHES, action="append")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--again", action="store_true", help="measure these cells again")
    given = parser.parse_args()
    store = OUT / "target.json"
    cells: dict[str, Cell] = json.loads(store.read_text()) if store.exists() else {}
    scratch = Path(os.environ.get("PRUNEKIT_SCRATCH") or Path(tempfile.gettempdir()) / "prunekit-target")
    for name in given.model or SUBJECTS:
        for runtime in given.runtime or RUNTIMES:
            for batch in given.batch or BATCHES:
                key = f"{name} | {runtime} | {batch}"
                key += " | int8" if given.precision == "int8" else ""
                if key in cells and not given.again:
                    continue
                folder = scratch / "".join(letter if letter.isalnum() else "-" for letter in name)
                cell = _measure(key, [name, runtime, str(batch), given.precision, str(folder)])
                if cell is not None:
                    cells[key] = cell
                    store.write_text(json.dumps(cells, indent=1) + "\n")
                    (OUT / "target.md").write_text(page(list(cells.values())))
                    print(key, [(one["asked"], one.get("measured")) for one in cell["goals"]], flush=True)
    (OUT / "target.md").write_text(page(list(cells.values())))


def _measure(key: str, arguments: Sequence[str]) -> Cell | None:
    command = [sys.executable, "-m", "benchmarks.target.cell", *arguments, *map(str, ASKED)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HOURS * 3600, check=False)
    if done.returncode:
        print(f"{key} failed:\n{done.stderr[-2000:]}", file=sys.stderr, flush=True)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def page(cells: Sequence[Cell]) -> str:
    """The tables as Markdown."""
    cells = sorted(cells, key=lambda cell: (*SUBJECTS,).index(cell["model"]))
    goals = [goal for cell in cells for goal in cell["goals"]]
    met = sum(_is_near(goal) for goal in goals)
    over = sum(goal["met"] and goal["measured"] > goal["asked"] and not _is_near(goal) for goal in goals)
    first = [goal for goal in goals if goal["met"] and abs(goal["first"] / goal["asked"] - 1) <= TOLERANCE]
    in_int8 = sum(_is_int8(cell) for cell in cells)
    slower = [goal for goal in goals if goal["met"] and goal["low"] < 1]
    lines = [
        "# Speed-ups asked for and measured",
        "",
        "`python -m benchmarks.target`: each cell is a model on a runtime at a batch, in its own process.",
        "Its costs are measured once, then four speed-ups are asked for, to be met within 3 %: the plan is",
        "chosen, exported, timed in pairs beside the dense model, corrected and chosen again; each goal",
        "begins with what the attempts at those before have taught. Losses follow from weight norms, because",
        "only speed is in question here.",
        "",
        f"**{met} of {len(goals)} goals were met within 3 %**, {len(first)} at the first attempt; {over}",
        "more were exceeded by more than that: of what was fast enough and tried, these plans lost least;",
        f"{len(slower)} were slower than dense.",
        _efficiency(cells),
        f"The model of cost, fitted to 8 whole models, was wrong by {_share(_median(cells))} (median over",
        "the cells of the median error on a whole model it was not fitted to).",
        "",
        "| model | runtime | batch | dense ms | " + " | ".join(f"{speedup:g}x" for speedup in ASKED) + " |",
        "|---|---|---:|---:|" + "---:|" * len(ASKED),
    ]
    for cell in cells:
        figures = " | ".join(map(_goal, cell["goals"]))
        lines.append(
            f"| {_name(cell)} | {_runtime(cell)} | {cell['batch']} | {cell['dense_ms']:.2f} | {figures} |"
        )
    lines += [
        "",
        "A goal: the measured speed-up, its 95 % interval, the number of attempts, and the realised",
        "efficiency (measured speed-up over the factor by which the MACs fell). `>`: exceeded by more than",
        "3 %. What is not met says what the nearest plan measured, where a goal is out of reach. A star:",
        "by an earlier version, which timed operations alone and not inside of models too.",
        "",
        "## What the model of cost took, and what it was worth",
        "",
        "| model | runtime | batch | table s | of which export s | levers | median error | without parts "
        "| largest error |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        *(
            f"| {_name(cell)} | {_runtime(cell)} | {cell['batch']} | {cell['table_s']:.0f} "
            f"| {cell['exporting_s']:.0f} | {cell['levers']} | {_share(cell['median_error'])} "
            f"| {_apart(cell)} | {_share(max(map(abs, cell['errors'])))} |"
            for cell in cells
        ),
        "",
        f"Of {len(SUBJECTS) * len(RUNTIMES) * len(BATCHES)} cells {len(cells) - in_int8} are measured, and",
        f"{in_int8} in int8, where the dense model is in int8 too (`--precision int8`).",
        _seconds(goals),
        "`without parts`: the same where what operations took inside of the whole models is not looked at.",
        "Exported models are found again by the other runtime and batch of a model; operations that two",
        "models share are timed once.",
        "",
        *where([cell["environment"] for cell in cells]),
    ]
    return "\n".join(lines) + "\n"


def _goal(goal: dict[str, Any]) -> str:
    if not goal["met"]:
        said = "too noisy to tell" if goal.get("error") == "MeasurementError" else "not met"
        return f"{said}: {goal['nearest']:.2f}" if goal.get("nearest") else said
    efficiency = goal["measured"] / goal["macs_removed"]
    speedup = f"{goal['measured']:.2f} ({goal['low']:.2f} to {goal['high']:.2f})"
    speedup = speedup if _is_near(goal) else f"> {speedup}"
    return f"{speedup}, {goal['attempts']}, {efficiency:.2f}"


def _is_near(goal: dict[str, Any]) -> bool:
    return goal["met"] and abs(goal["measured"] / goal["asked"] - 1) <= TOLERANCE


def _name(cell: Cell) -> str:
    present = [ALONE] if _is_int8(cell) else [ALONE, SCHEMA]  # Quantized models are not looked into.
    return cell["model"] + ("" if cell.get("timed_by") == present else " *")


def _runtime(cell: Cell) -> str:
    return cell["runtime"] + (" int8" if _is_int8(cell) else "")


def _is_int8(cell: Cell) -> bool:
    return cell.get("precision") == "int8"


def _efficiency(cells: Sequence[Cell]) -> str:
    """What convolutional networks made of the MACs that they lost, at twice the speed."""
    found = [
        goal["measured"] / goal["macs_removed"]
        for cell in cells
        if cell["model"] in CONVOLUTIONAL and not _is_int8(cell)
        for goal in cell["goals"]
        if goal["met"] and goal["asked"] == 2
    ]
    if not found:
        return ""
    return (
        f"At twice the speed convolutional networks in floats realised {min(found):.2f} to {max(found):.2f} "
        f"of the factor by which their MACs fell (median {np.median(found):.2f}, {len(found)} cells)."
    )


def _seconds(goals: Sequence[dict[str, Any]]) -> str:
    """What a goal takes once the costs are known."""
    met = [goal for goal in goals if goal["met"]]
    if not met:
        return ""
    whole, choosing = (float(np.median([goal[key] for goal in met])) for key in ("s", "choosing_s"))
    return f"A goal then took {whole:.0f} s with exports and timing, the choice {choosing:.1f} s (medians)."


def _median(cells: Sequence[Cell]) -> float:
    return float(np.median([cell["median_error"] for cell in cells])) if cells else float("nan")


def _apart(cell: Cell) -> str:
    return _share(cell["median_error_apart"]) if "median_error_apart" in cell else ""


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


if __name__ == "__main__":
    main()
