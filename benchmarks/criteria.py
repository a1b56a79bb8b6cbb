"""Random, L1, L2 and Taylor on the digits network: the same MACs removed, the same recovery, several seeds.

    python benchmarks/criteria.py [--seeds 3] [--remove 0.65] [--epochs 4] [--out docs/benchmarks]

For each seed a parent is trained; each criterion removes the same share of its MACs in one shot and recovers
for the same number of epochs. Accuracy is on the test split, which decides nothing here: settings are those
of the digits recipe. Writes JSON with every figure and the Markdown table.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch

from prunekit.evaluate import compare
from prunekit.graph import find_groups, trace
from prunekit.importance import collect, needs_of, score
from prunekit.measure import environment
from prunekit.plan import Goal, allocate
from prunekit.recover import TrainingSettings, train
from prunekit.surgery import remove, verify
from prunekit.types import WIDTHS
from prunekit.workload import Workload, load_workload, predict

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits" / "workload.py"
WIDTH_OF_STAGES = (48, 96, 192)
COMPARED = ("l1", "l2", "taylor", "random")
PARENT = TrainingSettings(epochs=10, batch_size=32, learning_rate=0.02, warmup=0.1)


def one_cut(
    parent: torch.nn.Module, workload: Workload, criterion: str, asked: argparse.Namespace, seed: int
):
    """Prune a copy of the parent once, prove it, and recover it; test evidence before and after recovery."""
    example = workload.example_inputs(2)
    groups = find_groups(trace(parent, example.args, example.kwargs)).select(granularity=WIDTHS)
    needs = needs_of(criterion)
    calibration = workload.splits.deciding.calibration.batches(32)
    stats = collect(parent, calibration, groups=groups, needs=needs, loss=workload.loss) if needs else None
    scores = score(parent, groups, criterion, stats=stats, seed=seed)
    plan = allocate(groups, scores, Goal(kind="macs", remove=asked.remove), criterion=criterion)
    small = remove(parent, plan, groups).model
    assert verify(parent, small, plan, groups).passed
    test = workload.splits.open_test()
    cut = predict(small, test, workload)
    settings = TrainingSettings(epochs=asked.epochs, batch_size=32, learning_rate=0.01, warmup=0.1, seed=seed)
    train(small, workload, settings)
    return plan, cut, predict(small, test, workload)


def measure(asked: argparse.Namespace) -> list[dict]:
    """One row per seed and criterion."""
    rows = []
    workload = load_workload(EXAMPLE)
    for seed in range(asked.seeds):
        torch.manual_seed(seed)
        parent = type(workload.build())(WIDTH_OF_STAGES)
        train(parent, workload, TrainingSettings(**{**vars(PARENT), "seed": seed}))
        parent.eval()
        dense = predict(parent, workload.splits.open_test(), workload)
        for criterion in COMPARED:
            plan, cut, recovered = one_cut(copy.deepcopy(parent), workload, criterion, asked, seed)
            change = compare(dense, recovered, seed=seed).overall
            rows.append(
                {
                    "seed": seed,
                    "criterion": criterion,
                    "n": change.n,
                    "macs_left": plan.after.macs / plan.before.macs,
                    "dense": change.dense,
                    "before_recovery": float(cut["correct"].mean()),
                    "after_recovery": change.pruned,
                    "change": change.change,
                    "low": change.low,
                    "high": change.high,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """Mean over the seeds, with the range over them."""
    lines = [
        "| criterion | MACs left | after the cut | after recovery | change to the parent |",
        "|---|---|---|---|---|",
    ]
    for criterion in COMPARED:
        mine = [row for row in rows if row["criterion"] == criterion]
        cells = [f"{100 * np.mean([row['macs_left'] for row in mine]):.1f} %"]
        for key in ("before_recovery", "after_recovery"):
            values = [100 * row[key] for row in mine]
            cells.append(f"{np.mean(values):.1f} % ({min(values):.1f} to {max(values):.1f})")
        changes = [100 * row["change"] for row in mine]
        cells.append(f"{np.mean(changes):+.2f} points ({min(changes):+.2f} to {max(changes):+.2f})")
        lines.append(f"| {criterion} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--remove", type=float, default=0.65)
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = measure(asked)
    asked.out.mkdir(parents=True, exist_ok=True)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(asked).items()}
    record = {"settings": settings, "environment": environment(asked.threads), "rows": rows}
    (asked.out / "criteria.json").write_text(json.dumps(record, indent=1) + "\n")
    text = table(rows)
    (asked.out / "criteria.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
