"""How long exact selection takes at 1e8 scores, and how much memory, beside a sort and a threshold.

    python benchmarks/selection.py [--part NAME]

Half of the scores stay. Each row runs in a process of its own, on one thread, so that its peak memory is its
own; memory is what comes on top of the scores. The threshold is no competitor: with ties its count is wrong.
Writes ``docs/benchmarks/selection.json`` and ``selection.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prunekit.plan.exact import keep_highest, keep_in_rows

OUT = Path(__file__).parents[1] / "docs" / "benchmarks"
COUNT = 100_000_000
KEEP = COUNT // 2


def by_sort(scores: Tensor) -> Tensor:
    mask = torch.zeros(COUNT, dtype=torch.bool)
    mask[scores.argsort(descending=True, stable=True)[:KEEP]] = True
    return mask


def by_threshold(scores: Tensor) -> Tensor:
    edge = np.partition(scores.numpy(), COUNT - KEEP)[COUNT - KEEP]
    return scores >= edge


def in_fours(scores: Tensor) -> Tensor:
    return keep_in_rows(scores.reshape(-1, 4), 2)


def counted(scores: Tensor) -> Tensor:
    return keep_highest([scores], KEEP)[0]


WAYS: dict[str, tuple[Callable[[Tensor], Tensor], torch.dtype, int]] = {
    "exact, float32": (counted, torch.float32, 0),
    "exact, float32, 100 distinct values": (counted, torch.float32, 100),
    "exact, bfloat16": (counted, torch.bfloat16, 0),
    "2:4, float32": (in_fours, torch.float32, 0),
    "stable sort, float32": (by_sort, torch.float32, 0),
    "np.partition and >=, float32": (by_threshold, torch.float32, 0),
    "np.partition and >=, float32, 100 distinct values": (by_threshold, torch.float32, 100),
}
"""Name -> how, the scores' dtype, how many distinct values (0 = as drawn)."""


def measure(name: str) -> dict[str, float]:
    """Select once, after a small selection that loads what has to be loaded."""
    torch.set_num_threads(1)
    how, dtype, distinct = WAYS[name]
    keep_highest([torch.rand(1000)], 10)
    scores = torch.rand(COUNT, generator=torch.Generator().manual_seed(0), dtype=dtype)
    if distinct:
        scores.mul_(distinct).floor_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    mask = how(scores)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": round(seconds, 2), "gb": round((peak - before) / 1e6, 2), "kept": int(mask.sum())}


def main() -> None:
    """Measure every way in its own process and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--part", choices=WAYS, help="measure this one and print it as JSON")
    part = parser.parse_args().part
    if part is not None:
        print(json.dumps(measure(part)))
        return
    from prunekit.measure import environment

    rows, load = {}, os.getloadavg()[0]
    for name in WAYS:
        command = [sys.executable, __file__, "--part", name]
        rows[name] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        print(name, rows[name], flush=True)
    record = {"environment": environment(threads=1), "count": COUNT, "keep": KEEP, "load": load, "rows": rows}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "selection.json").write_text(json.dumps(record, indent=1, default=str) + "\n")
    (OUT / "selection.md").write_text(table(rows, load))


def table(rows: dict[str, dict[str, float]], load: float) -> str:
    """The rows as Markdown; ``load`` says what else ran on the machine."""
    lines = [
        f"| {name} | {row['seconds']:.1f} | {row['gb']:.2f} | {row['kept']:,} |\n"
        for name, row in rows.items()
    ]
    return (
        f"# Keeping {KEEP:,} of {COUNT:,} scores\n\nOne thread, one process for each row; memory is what "
        "comes on top of the scores, the mask (0.10 GB) included (`python benchmarks/selection.py`; the "
        f"environment is in `selection.json`; {load:.1f} processes wanted {os.cpu_count()} cores when it "
        "began).\n\n| way | s | GB | kept |\n|---|---|---|---|\n" + "".join(lines)
    )


if __name__ == "__main__":
    main()
