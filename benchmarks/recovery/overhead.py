"""A training step of a pruned network against one of the same size that was built so from the start."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.recovery import fashion, minilm
from benchmarks.recovery.cells import commit
from benchmarks.recovery.cuts import Channels, Units, groups_of, traced
from benchmarks.recovery.ways import laid_out
from torch import nn
from transformers import BertConfig, BertModel

from prunekit.files import write_atomically
from prunekit.measure import environment
from prunekit.recover.training.optimizers import make_optimizer
from prunekit.workload import Batch, Workload

PAIRS, WARM = 40, 4
SIZED = {
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    nn.BatchNorm2d: ("num_features",),
    nn.Linear: ("in_features", "out_features"),
}
"""The arguments of constructors that say the size of a layer, read from its attributes."""


def rebuilt(model: nn.Module, skeleton: nn.Module) -> nn.Module:
    """``skeleton`` with every layer made anew by its constructor, in the sizes that ``model`` has."""
    for path, module in model.named_modules():
        names = SIZED.get(type(module))
        if names is None:
            continue
        given: dict[str, Any] = {name: getattr(module, name) for name in names}
        if not isinstance(module, nn.BatchNorm2d):
            given["bias"] = module.bias is not None
        skeleton.set_submodule(path, type(module)(**given))
    return skeleton


def pairs() -> dict[str, Callable[[], tuple[nn.Module, nn.Module, Workload, int]]]:
    """By name: the pruned network, the fresh one of its size, data, and examples per step."""

    def network(sparsity: float) -> tuple[nn.Module, nn.Module, Workload, int]:
        dense = fashion.ResNet20()
        example = Batch(args=(torch.zeros(2, 1, 28, 28),))
        cut = Channels(example, groups_of(dense, example).cost())
        pruned = cut(dense, sparsity)
        fresh = rebuilt(pruned, fashion.ResNet20())
        return laid_out(pruned), laid_out(fresh), fashion.workload(), fashion.PARENT.batch_size

    def encoder(granularity: str, **smaller: int) -> tuple[nn.Module, nn.Module, Workload, int]:
        dense, data = minilm.build().eval(), minilm.workload()
        calibration = tuple(data.splits.calibration.batches(minilm.PARENT.batch_size))
        example = Batch(args=tuple(part[:2] for part in calibration[0].args))
        criterion = "block_influence" if granularity == "layer" else "wanda"
        cut = Units(granularity, criterion, calibration, example, traced(dense, example).cost())
        pruned = cut(copy.deepcopy(dense), 0.5)
        config = BertConfig(**dense.encoder.config.to_dict() | smaller)
        fresh = minilm.Classifier(BertModel(config, add_pooling_layer=False), config.hidden_size)
        fresh.encoder.embeddings.requires_grad_(False)
        return pruned, fresh, data, minilm.PARENT.batch_size

    def control() -> tuple[nn.Module, nn.Module, Workload, int]:
        pruned, fresh, data, batch_size = network(0.5)
        return laid_out(rebuilt(pruned, fashion.ResNet20())), fresh, data, batch_size

    return {
        "ResNet-20, 50% of MACs": lambda: network(0.5),
        "ResNet-20, 90% of MACs": lambda: network(0.9),
        "MiniLM, half of the neurons": lambda: encoder("neuron", intermediate_size=768),
        "MiniLM, 3 of 6 layers": lambda: encoder("layer", num_hidden_layers=3),
        "fresh against fresh: ResNet-20, 50% of MACs": control,
    }


def compare(pruned: nn.Module, fresh: nn.Module, data: Workload, batch_size: int) -> dict[str, Any]:
    """CPU seconds of interleaved steps, the order within a pair changing; one thread."""
    shapes = [
        sorted(tuple(p.shape) for p in model.parameters() if p.requires_grad) for model in (pruned, fresh)
    ]
    assert shapes[0] == shapes[1], "the two are not of the same size"
    batch = data.splits.train.batch(range(batch_size))
    steps = [stepper(model, data, batch) for model in (pruned, fresh)]
    took = np.zeros((PAIRS + WARM, 2))
    for number in range(PAIRS + WARM):
        for side in (0, 1) if number % 2 else (1, 0):
            took[number, side] = steps[side]()
    took = took[WARM:]
    times = took[:, 0] / took[:, 1]
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(times, (10_000, PAIRS)), axis=1)
    return {
        "parameters": sum(p.numel() for p in pruned.parameters()),
        "pruned_ms": round(1000 * float(np.median(took[:, 0])), 2),
        "fresh_ms": round(1000 * float(np.median(took[:, 1])), 2),
        "times": round(float(np.median(times)), 4),
        "interval": [round(float(end), 4) for end in np.quantile(medians, (0.025, 0.975))],
        "pairs": PAIRS,
    }


def stepper(model: nn.Module, data: Workload, batch: Batch) -> Callable[[], float]:
    """A function that makes one training step with SGD and tells its CPU seconds."""
    model.train()
    optimizer = make_optimizer(model, "sgd", learning_rate=1e-3, momentum=0.9, weight_decay=5e-4)

    def step() -> float:
        begun = time.process_time()
        optimizer.zero_grad(set_to_none=True)
        data.loss(model(*batch.args), batch).backward()
        optimizer.step()
        return time.process_time() - begun

    return step


def measure_overhead(into: Path, threads: int) -> None:
    """Measure every pair and write ``recovery_overhead.json``."""
    torch.set_num_threads(threads)
    rows = []
    for name, made in pairs().items():
        torch.manual_seed(0)
        rows.append({"name": name} | compare(*made()))
        print(rows[-1], flush=True)
    record = {
        "commit": commit(),
        "date": date.today().isoformat(),
        "environment": environment(threads),
        "rows": rows,
    }
    write_atomically(into / "recovery_overhead.json", json.dumps(record, indent=1).encode() + b"\n")
