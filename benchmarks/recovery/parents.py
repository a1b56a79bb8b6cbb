"""Dense parents: trained once in stages of falling learning rates, and kept beside the fetched assets."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from benchmarks.assets.fetching import directory
from safetensors.torch import load_file, save_file
from torch import nn

from prunekit.files import write_atomically, written_atomically
from prunekit.recover import TrainingSettings, train
from prunekit.workload import Workload

STAGES = ((0.5, 1.0), (0.25, 0.1), (0.25, 0.01))
"""Share of the epochs, and of the peak of the learning rate, which is constant within a stage.

Source: He, Zhang, Ren & Sun, 2016, "Deep Residual Learning for Image Recognition", section 4.2,
https://arxiv.org/abs/1512.03385: the rate is divided by ten at 50 % and 75 % of the iterations. The last rate
is thus a hundredth of the peak, which is what "the parent's last learning rate" means in these tables.
"""

DECIDING = (
    "epochs",
    "batch_size",
    "learning_rate",
    "optimizer",
    "momentum",
    "weight_decay",
    "warmup",
    "seed",
)
"""The settings that make a parent what it is."""

Stages = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Parent:
    """A trained network and what its training took.

    Attributes:
        model: in evaluation mode.
        examples_seen: in training, every repetition counted.
        peak: the highest learning rate.
        last: the learning rate of the last stage.
        record: what is written beside the weights.
    """

    model: nn.Module
    examples_seen: int
    peak: float
    last: float
    record: dict[str, Any]


def parent(
    name: str, model: nn.Module, workload: Workload, settings: TrainingSettings, stages: Stages = STAGES
) -> Parent:
    """The trained ``model``; from the cache where the same name and settings were trained before.

    Args:
        name: of the study.
        model: freshly made by ``settings.seed``, trained in place.
        workload: train and validation splits are read.
        settings: of the whole training; its ``epochs`` are divided into ``stages``.
        stages: as :data:`STAGES`.
    """
    about = {"name": name, "stages": stages, **{key: getattr(settings, key) for key in DECIDING}}
    weights = cache_file(about, settings.seed)
    if not weights.exists():
        _train_into(weights, model, workload, settings, stages)
    model.load_state_dict(load_file(weights))
    record = json.loads(weights.with_suffix(".json").read_text())
    rates = settings.learning_rate, settings.learning_rate * stages[-1][1]
    return Parent(model.eval(), record["examples_seen"], *rates, record)


def cache_file(about: dict[str, Any], seed: int) -> Path:
    """Where the weights are kept; other settings are another place."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return directory() / "recovery-parents" / f"{about['name']}-{seed}-{digest[:12]}.safetensors"


def _train_into(
    weights: Path, model: nn.Module, workload: Workload, settings: TrainingSettings, stages: Stages
) -> None:
    begun, examples = time.process_time(), 0
    for stage, (share, factor) in enumerate(stages):
        chosen = replace(
            settings,
            epochs=settings.epochs * share,
            learning_rate=settings.learning_rate * factor,
            schedule="constant",
            warmup=settings.warmup if stage == 0 else 0.0,
            seed=settings.seed + 1000 * stage,
        )
        done = train(model, workload, chosen)
        examples += done.examples_seen
        print(json.dumps({"stage": stage} | asdict(done.epochs[done.best])), flush=True)
    record = {
        "examples_seen": examples,
        "cpu_seconds": round(time.process_time() - begun, 1),
        "validation": done.epochs[done.best].validation_metric,
        "threads": torch.get_num_threads(),
        "settings": {key: getattr(settings, key) for key in DECIDING},
    }
    weights.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(weights.with_suffix(".json"), json.dumps(record, indent=1).encode())
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with written_atomically(weights) as path:
        save_file(state, path)
