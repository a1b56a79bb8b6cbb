"""How long scoring takes on a model of ResNet-50's size, beyond the passes that calibration needs anyway."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from benchmarks.criteria.study import of_widths
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification

import prunekit as pk
from prunekit.importance import NEEDS, needs_of
from prunekit.importance.calibration import OF_ACTIVATIONS

BATCHES, PICTURES = 3, 8
CRITERIA = of_widths("bn_scale")


def loss(outputs: Any, batch: pk.Batch) -> Tensor:
    return nn.functional.cross_entropy(outputs.logits, batch.target)


def batches() -> list[pk.Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        pk.Batch(
            args=(),
            kwargs={"pixel_values": torch.randn(PICTURES, 3, 224, 224, generator=generator)},
            target=torch.randint(0, 2, (PICTURES,), generator=generator),
        )
        for _ in range(BATCHES)
    ]


def forward_passes(model: nn.Module, data: list[pk.Batch]) -> None:
    with torch.no_grad():
        for batch in data:
            model(**batch.kwargs)


def both_passes(model: nn.Module, data: list[pk.Batch]) -> None:
    parameters = list(model.parameters())
    for batch in data:
        torch.autograd.grad(loss(model(**batch.kwargs), batch), parameters)


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, so that other work on the machine counts less, and what was returned."""
    start = time.process_time()
    found = run()
    return time.process_time() - start, found


def measure() -> dict[str, Any]:
    """For each criterion the seconds of its own calibration, of the bare passes, and of its scores."""
    torch.manual_seed(0)
    model = ResNetForImageClassification(ResNetConfig()).eval()
    data = batches()
    groups = pk.find_groups(pk.trace(model, kwargs=data[0].kwargs)).select(granularity="channel")
    forward_passes(model, data[:1])
    both_passes(model, data[:1])  # what is done once in a process is not counted
    bare = {
        "forward": seconds(lambda: forward_passes(model, data))[0],
        "both": seconds(lambda: both_passes(model, data))[0],
    }
    every = needs_of(*CRITERIA) & NEEDS
    together, stats = seconds(lambda: collect(model, data, groups, every))
    gathered = {need: seconds(partial(collect, model, data, groups, {need}))[0] for need in sorted(every)}
    rows = []
    for name in CRITERIA:
        took, _ = seconds(partial(pk.score, model, groups, name, stats=stats, fallback="l2"))
        (need,) = needs_of(name) or ("",)
        passes = "forward" if need in OF_ACTIVATIONS else "both"
        rows.append(
            {
                "criterion": name,
                "calibration": gathered.get(need, 0.0),
                "passes": bare[passes] if need else 0.0,
                "score": took,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    about = {"batches": BATCHES, "pictures": PICTURES, "units": sum(group.size for group in groups)}
    return about | {"bare": bare, "together": together, "held_bytes": stats.peak_bytes, "rows": rows}


def collect(model: nn.Module, data: list[pk.Batch], groups: pk.Groups, needs: Any) -> Any:
    return pk.collect(model, data, groups=groups, needs=needs, loss=loss)
