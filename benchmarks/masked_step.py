"""What a training step costs more with masks than without, and what it costs to change the masks.

    python benchmarks/masked_step.py [--part NAME]

Plain and masked model train side by side, one step of each in turn, in a process of its own for each row, on
one thread: forward, backward, SGD with momentum. Nine of ten weights are masked; how many plays no part.
Writes ``docs/benchmarks/masked_step.json`` and ``masked_step.md``.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

import prunekit as pk

OUT = Path(__file__).parents[1] / "docs" / "benchmarks"
LIMIT = 1.15
EVERY = 100


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm beside a shortcut, as in a ResNet for small images."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Branch and shortcut, added."""
        return torch.relu(self.branch(x) + self.shortcut(x))


def resnet20() -> nn.Module:
    widths = [16, 16, 16, 16, 32, 32, 32, 64, 64, 64]
    blocks = [Residual(a, b) for a, b in pairwise(widths)]
    stem = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def encoder(width: int) -> Callable[[], nn.Module]:
    return lambda: nn.TransformerEncoderLayer(width, width // 32, 4 * width, dropout=0.0, batch_first=True)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "ResNet-20, 28x28, batch 128": (resnet20, (128, 1, 28, 28), 150),
    "encoder layer, 384 wide, 32 x 128 tokens": (encoder(384), (32, 128, 384), 60),
    "encoder layer, 768 wide, 16 x 128 tokens": (encoder(768), (16, 128, 768), 40),
    "encoder layer, 768 wide, 8 x 64 tokens": (encoder(768), (8, 64, 768), 150),
}
"""Name -> how the model is built, the shape of a batch, how many pairs of steps."""


def stepper(model: nn.Module, x: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return step


def change_ms(model: nn.Module, x: Tensor, regrow: str) -> float:
    """Milliseconds of one change of the masks, the median of five."""
    step = stepper(model, x)
    schedule = pk.GradualMasks(
        model, sparsity=0.9, initial=0.5, steps=100, end=1.0, every=1, curve="linear", regrow=regrow
    )
    times = []
    for _ in range(5):
        step()
        began = time.perf_counter()
        schedule.step()
        times.append(1e3 * (time.perf_counter() - began))
    return median(times)


def measure(name: str) -> dict[str, float]:
    """One row."""
    from prunekit.measure import compare_latency

    torch.set_num_threads(1)
    torch.manual_seed(0)
    build, shape, pairs = CASES[name]
    dense, x = build(), torch.randn(shape)
    masked = pk.mask_weights(dense, sparsity=0.9)
    found = compare_latency(
        stepper(masked.model, x), stepper(copy.deepcopy(dense), x), pairs=pairs, warmup=3, max_seconds=240
    )
    changes = {rule: change_ms(copy.deepcopy(dense), x, rule) for rule in ("none", "gradient")}
    return {
        "masked_weights": sum(mask.count for mask in masked.plan.masks.values()),
        "plain_ms": round(found.pruned.p50_ms, 1),
        "overhead": round(found.speedup.median, 3),
        "low": round(found.speedup.low, 3),
        "high": round(found.speedup.high, 3),
        "pairs": len(found.dense_ms),
        "change_ms": round(changes["none"], 1),
        "exchange_ms": round(changes["gradient"], 1),
    }


def main() -> None:
    """Measure every case in its own process and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--part", choices=CASES, help="measure this one and print it as JSON")
    part = parser.parse_args().part
    if part is not None:
        print(json.dumps(measure(part)))
        return
    from prunekit.measure import environment

    rows, load = {}, os.getloadavg()[0]
    for name in CASES:
        command = [sys.executable, __file__, "--part", name]
        rows[name] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        print(name, rows[name], flush=True)
    record = {"environment": environment(threads=1), "limit": LIMIT, "load": load, "rows": rows}
    print(json.dumps(record["environment"], default=str))
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "masked_step.json").write_text(json.dumps(record, indent=1, default=str) + "\n")
    (OUT / "masked_step.md").write_text(table(rows, load))


def table(rows: dict[str, dict[str, float]], load: float) -> str:
    """The rows as Markdown; ``load`` says what else ran on the machine."""
    names = ("model", "masked weights", "plain step, ms", "masked / plain", "95 % interval")
    names += ("change, ms", "with regrowth, ms", f"with a change every {EVERY} steps")
    lines = []
    for name, row in rows.items():
        spread = row["exchange_ms"] / EVERY / row["plain_ms"]
        lines.append(
            f"| {name} | {row['masked_weights']:,} | {row['plain_ms']:.1f} | {row['overhead']:.3f} | "
            f"{row['low']:.3f} to {row['high']:.3f} | {row['change_ms']:.0f} | {row['exchange_ms']:.0f} | "
            f"{row['overhead'] + spread:.3f} |\n"
        )
    return (
        "# What masks cost in training\n\nForward, backward and SGD with momentum; plain and masked model "
        "take turns in one process on one thread, and the median of the paired quotients is shown with its "
        f"interval. The limit is {LIMIT}. The last column adds one change of the masks with "
        f"regrowth by gradient every {EVERY} steps (`python benchmarks/masked_step.py`; the environment "
        f"is in `masked_step.json`; {load:.1f} processes wanted {os.cpu_count()} cores when it began).\n\n"
        f"| {' | '.join(names)} |\n{'|---' * len(names)}|\n" + "".join(lines)
    )


if __name__ == "__main__":
    main()
