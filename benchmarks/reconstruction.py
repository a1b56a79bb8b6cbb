"""One-shot pruning of the digits network with and without reconstruction, at three sparsities, several seeds.

    python benchmarks/reconstruction.py [--seeds 3] [--out docs/benchmarks]

For each seed a parent is trained; the same share of every group's units goes, by L2 norm, by exact greedy
removal or at random, and nothing is trained afterwards. Reconstruction reads the
calibration split, without labels; accuracy is on the test split. Writes JSON and the Markdown table.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from prunekit.graph import find_groups, trace
from prunekit.importance import score
from prunekit.measure import environment
from prunekit.plan import Goal, allocate
from prunekit.reconstruction import reconstruct, removal_errors
from prunekit.recover import TrainingSettings, train
from prunekit.surgery import remove
from prunekit.types import WIDTHS
from prunekit.workload import Workload, load_workload, predict

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits" / "workload.py"
WIDTH_OF_STAGES = (24, 48, 96)
CRITERIA = ("l2", "removal", "random")
SPARSITIES = (0.3, 0.5, 0.7)
PARENT = TrainingSettings(epochs=10, batch_size=32, learning_rate=0.02, warmup=0.1)


def cut(parent: torch.nn.Module, workload: Workload, criterion: str, sparsity: float, seed: int) -> dict:
    """Test accuracy without reconstruction and with both kinds, and what they took."""
    example = workload.example_inputs(2)
    groups = find_groups(trace(parent, example.args, example.kwargs)).select(granularity=WIDTHS)
    calibration = list(workload.splits.deciding.calibration.batches(32))
    stats = removal_errors(parent, groups, calibration) if criterion == "removal" else None
    scores = score(parent, groups, criterion, stats=stats, seed=seed)
    plan = allocate(groups, scores, Goal(kind="sparsity", remove=sparsity), criterion=criterion)
    removal = remove(parent, plan, groups)
    test = workload.splits.open_test()

    def accuracy(model: torch.nn.Module) -> float:
        return float(predict(model.eval(), test, workload)["correct"].mean())

    row = {"seed": seed, "criterion": criterion, "sparsity": sparsity, "cut": accuracy(removal.model)}
    for kind in ("parallel", "sequential"):
        start = time.perf_counter()
        found = reconstruct(parent, removal, plan, groups, calibration, sequential=kind == "sequential")
        row[f"{kind}_seconds"] = time.perf_counter() - start
        row[kind] = accuracy(found.model)
        row[f"{kind}_peak_bytes"] = found.peak_bytes
    return row


def measure(seeds: int) -> list[dict]:
    """One row per seed, criterion and sparsity."""
    rows = []
    workload = load_workload(EXAMPLE)
    for seed in range(seeds):
        torch.manual_seed(seed)
        parent = type(workload.build())(WIDTH_OF_STAGES)
        train(parent, workload, TrainingSettings(**{**vars(PARENT), "seed": seed}))
        parent.eval()
        dense = float(predict(parent, workload.splits.open_test(), workload)["correct"].mean())
        for criterion in CRITERIA:
            for sparsity in SPARSITIES:
                rows.append(cut(parent, workload, criterion, sparsity, seed) | {"dense": dense})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """Mean over the seeds, with the range over them."""
    lines = [
        "| criterion | units removed | dense | cut | parallel | sequential | seconds (sequential) |",
        "|---|---|---|---|---|---|---|",
    ]
    for criterion in CRITERIA:
        for sparsity in SPARSITIES:
            mine = [row for row in rows if (row["criterion"], row["sparsity"]) == (criterion, sparsity)]
            cells = []
            for key in ("dense", "cut", "parallel", "sequential"):
                values = [100 * row[key] for row in mine]
                cells.append(f"{np.mean(values):.1f} % ({min(values):.1f} to {max(values):.1f})")
            cells.append(f"{np.mean([row['sequential_seconds'] for row in mine]):.1f}")
            lines.append(f"| {criterion} | {sparsity:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = measure(asked.seeds)
    asked.out.mkdir(parents=True, exist_ok=True)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(asked).items()}
    record = {"settings": settings, "environment": environment(asked.threads), "rows": rows}
    (asked.out / "reconstruction.json").write_text(json.dumps(record, indent=1) + "\n")
    text = table(rows)
    (asked.out / "reconstruction.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
