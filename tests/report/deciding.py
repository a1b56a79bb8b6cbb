"""Made-up results of the stages that decide and train: baseline and the cycles."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
from tests.report.sample import Sample, write_stage


def write_baseline(root: Path, sample: Sample, widths: dict[str, int], cost: dict[str, int]) -> None:
    rng = np.random.default_rng(sample.seed + 1)
    frozen = [
        {
            "name": "fc.weight:0",
            "size": len(sample.classes),
            "operator": "output",
            "reason": "it is an output of the model",
            "source": "",
            "slices": [_slice("fc.weight", 0, "producer", len(sample.classes))],
        },
        {
            "name": "stem.weight:1",
            "size": 1,
            "operator": "input",
            "reason": "it is an input of the model",
            "source": "",
            "slices": [],
        },
    ]
    frozen += [
        {
            "name": f"{sample.layer_names()[i % sample.layers]}#{i}",
            "size": 64,
            "operator": "aten.sort.default",
            "reason": "no rule says how units travel through this operator",
            "source": f"model.py:{41 + i % 2}: values, _ = torch.sort(x, dim=1)",
            "slices": [_slice(sample.layer_names()[i % sample.layers], 2, "producer", 3)],
        }
        for i in range(sample.extra_frozen)
    ]
    write_stage(
        root,
        "baseline",
        {
            "quality": {"split": "validation", "metric": "correct", "n": 360, "value": 355 / 360},
            "cost": cost,
            "training": training(rng, epochs=12, start=0.1, end=0.986),
            "tensors": _tensors(widths),
            "groups": _groups(widths),
            "frozen": frozen,
        },
    )


def _tensors(widths: dict[str, int]) -> dict[str, list[int]]:
    inputs = [1, *widths.values()]
    shapes = {name: [size, inputs[i], 3, 3] for i, (name, size) in enumerate(widths.items())}
    return {**shapes, "fc.weight": [10, inputs[-1]]}


def _groups(widths: dict[str, int]) -> list[dict[str, Any]]:
    """A chain: each group is computed by its own tensor and read by the next."""
    readers = [*list(widths)[1:], "fc.weight"]
    return [
        {
            "name": name,
            "granularity": "channel",
            "size": size,
            "blocks": 1,
            "tensors": [name, reader],
            "mask_equivalent": True,
            "slices": [_slice(name, 0, "producer", size), _slice(reader, 1, "consumer", size)],
        }
        for (name, size), reader in zip(widths.items(), readers, strict=True)
    ]


def _slice(tensor: str, dim: int, role: str, indices: int) -> dict[str, Any]:
    return {"tensor": tensor, "dim": dim, "role": role, "indices": indices}


def write_cycle(
    root: Path,
    sample: Sample,
    number: int,
    widths: dict[str, int],
    cost: dict[str, int],
    rng: np.random.Generator,
) -> None:
    done = 1 - (1 - number / sample.cycles) ** 3
    target, cycle = 0.5 * done, f"cycle-{number:02d}"
    shares = np.random.default_rng(7).uniform(0.1, 0.55, len(widths))
    after = {
        name: [size, max(1, round(size * (1 - share * done)))]
        for (name, size), share in zip(widths.items(), shares, strict=True)
    }
    write_stage(
        root,
        f"{cycle}/score",
        {
            "criterion": "taylor",
            "reduction": "mean",
            "normalization": "mean",
            "groups": {name: {"min": 0.01, "median": 0.93, "max": 4.1} for name in widths},
        },
    )
    left = {key: round(value * (1 - target * 0.997)) for key, value in cost.items()}
    goal = {"kind": "macs", "remove": 0.5, "reach": None, "tolerance": 0.02, "percentile": None}
    write_stage(
        root,
        f"{cycle}/plan",
        {
            "goal": goal,
            "scope": "global",
            "target_remove": target,
            "before": cost,
            "after": left,
            "widths": after,
            "digest": hashlib.sha256(cycle.encode()).hexdigest(),
        },
    )
    hurt = [0.94, 0.86, 0.71][min(number, 3) - 1]
    _write_pruned(root, cycle, list(widths), hurt)
    _write_recovered(root, cycle, rng, hurt=hurt, end=0.986 - 0.004 * number)


def _write_pruned(root: Path, cycle: str, names: list[str], hurt: float) -> None:
    laws = [
        {
            "law": law,
            "groups": names,
            "max_relative_error": error,
            "tolerance": 1e-6,
            "batch_sizes": [2, 3],
            "passed": True,
            "note": "",
        }
        for law, error in (("permutation", 3.1e-15), ("mask", 0.0), ("form", 2.2e-16))
    ]
    prune = {
        "form": "own class",
        "form_reason": "it computes what the pruned graph computes",
        "form_error": 2.2e-16,
        "proof": {"passed": True, "laws": laws},
        "quality": _quality(round(hurt * 360) / 360),
    }
    write_stage(root, f"{cycle}/prune", prune)


def _write_recovered(root: Path, cycle: str, rng: np.random.Generator, *, hurt: float, end: float) -> None:
    log = training(rng, epochs=4, start=hurt, end=end)
    recover = {
        "recalibrated": None,
        "distilled": {"logits": 1.0, "temperature": 2.0, "hidden": 0.0, "attention": 0.0, "task": 0.5},
        "training": log,
        "budget": {"asked": {"epochs": 4.0}, "epochs": 4.0, "share_of_original": 4 / 12},
        "quality": _quality(log["epochs"][log["best"]]["validation_metric"]),
    }
    write_stage(root, f"{cycle}/recover", recover)


def _quality(value: float) -> dict[str, Any]:
    return {"split": "validation", "metric": "correct", "n": 360, "value": value}


def training(
    rng: np.random.Generator, *, epochs: int, start: float, end: float, examples: int = 1077
) -> dict[str, Any]:
    """A training log: line 0 is the model as it came."""
    log: list[dict[str, Any]] = []
    for epoch in range(epochs + 1):
        progress = 1 - math.exp(-2.2 * epoch / max(1, epochs))
        accuracy = start + (end - start) * progress / (1 - math.exp(-2.2))
        accuracy = round((accuracy + float(rng.normal(0, 0.002))) * 360) / 360
        loss = 3.2 * (1 - accuracy) + 0.02
        log.append(
            {
                "epoch": float(epoch),
                "step": epoch * 17,
                "train_loss": None if epoch == 0 else 0.7 * loss + float(rng.normal(0, 0.004)),
                "validation_loss": loss + float(rng.normal(0, 0.004)),
                "validation_metric": min(1.0, accuracy),
                "learning_rate": None if epoch == 0 else 1e-3 * (1 - epoch / (epochs + 1)),
                "seconds": 1.24,
            }
        )
    best = max(range(len(log)), key=lambda i: (log[i]["validation_metric"], -i))
    return {
        "metric": "correct",
        "epochs": log,
        "best": best,
        "stopped_early": False,
        "steps": epochs * 17,
        "steps_planned": epochs * 17,
        "examples_seen": epochs * examples,
        "seconds": epochs * 1.24,
        "tokens_seen": None,
        "resumed_at": None,
    }
