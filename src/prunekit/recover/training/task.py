"""What a training run may see: a loss, a train split and a validation split, and no test data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prunekit.workload import Batch, DecidingWorkload, Split


@dataclass(frozen=True)
class Task:
    """What to train on and what to judge by.

    Attributes:
        loss: ``loss(outputs, batch)``, the mean over the batch, a scalar tensor; None where an objective
            needs no labels, which then is what validation measures as well.
        train: what the weights are fitted to.
        validation: what the best epoch is chosen on.
        metric: the name of the quality; "" where there is none.
        score: ``score(outputs, batch)``, the quality of each example, ``[len(batch)]``, higher is better;
            None where only the loss counts.
        augment: ``augment(batch, generator)``, a changed copy of a training batch; all its randomness comes
            from ``generator``.
    """

    loss: Callable[[Any, Batch], torch.Tensor] | None
    train: Split
    validation: Split
    metric: str = ""
    score: Callable[[Any, Batch], np.ndarray] | None = None
    augment: Callable[[Batch, torch.Generator], Batch] | None = None


def task_of(workload: DecidingWorkload) -> Task:
    """The train and validation splits of a workload with its loss and metric."""

    def score(outputs: Any, batch: Batch) -> np.ndarray:
        return workload.evidence(outputs, batch)[workload.metric]

    return Task(
        loss=workload.loss,
        train=workload.splits.train,
        validation=workload.splits.validation,
        metric=workload.metric,
        score=score,
        augment=getattr(workload, "augment", None),
    )
