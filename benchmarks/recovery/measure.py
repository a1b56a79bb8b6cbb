"""One cell from the parent to its row."""

from __future__ import annotations

import copy
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from benchmarks.recovery.cells import Cell, packed
from benchmarks.recovery.subject import Subject
from benchmarks.recovery.ways import WAYS, Recovered, Settings
from torch import nn

from prunekit.recover import (
    Distillation,
    DistillationSettings,
    Task,
    task_of,
    train,
    validate,
)
from prunekit.workload import predict

TAUGHT = DistillationSettings(logits=0.5, task=0.5, temperature=2.0)
"""Half of the loss is the divergence from the parent's logits, half the labels'; not tuned."""


def measure(cell: Cell, subject: Subject) -> dict[str, Any]:
    """Prune, recover and judge: the test split is opened once, for the last figure."""
    assert cell.seed == subject.seed
    torch.manual_seed(cell.seed)
    begun = time.process_time()
    task = task_of(subject.workload)
    settings = partial(subject.settings, cell.budget, cell.rates)
    done = recovered(cell, subject, task, settings)
    seconds = time.process_time() - begun
    uncut = settings(subject.parent.model).learning_rate
    _, validation = validate(done.model, task, batch_size=256)
    return {
        "left": round(done.left, 4),
        "examples_seen": done.examples_seen,
        "learning_rate": max((entry["learning_rate"] for entry in done.log), default=uncut),
        "log": done.log,
        "validation": validation,
        "cpu_seconds": round(seconds, 1),
    } | judged(done.model, subject)


def recovered(cell: Cell, subject: Subject, task: Task, settings: Settings) -> Recovered:
    model = copy.deepcopy(subject.parent.model)
    if cell.kind == "nothing":
        if cell.budget == 0:
            return Recovered(model.eval(), 0, [], 1.0)
        return Recovered(model.eval(), train(model, task, settings(model)).examples_seen, [], 1.0)
    objective = None
    if cell.distilled:
        objective = Distillation(copy.deepcopy(subject.parent.model), TAUGHT, loss=subject.workload.loss)
    return WAYS[cell.way](model, subject.cuts[cell.kind], cell.sparsity, task, settings, objective)


def judged(model: nn.Module, subject: Subject) -> dict[str, Any]:
    """The quality on the test split, and which of its examples are right."""
    right = predict(model, subject.workload.splits.open_test(), subject.workload)["correct"].to_numpy()
    return {"test": float(right.mean()), "right": packed(np.asarray(right, dtype=bool))}
