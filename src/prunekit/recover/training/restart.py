"""Optimizer, learning rate, schedule, weight decay and warm-up of a recovery where nobody says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prunekit.recover.training.settings import TrainingSettings

RATE = 0.01
"""Of a recovery by SGD, or of one whose parent was trained by another optimizer or is not known."""

LITTLE = 0.3
"""How much the loss may rise, relative to the parent's, for a cut to count as one that took little."""

LOW = 0.1
"""The share of the parent's highest learning rate at which AdamW goes on where little was lost."""

RISE = 0.1
"""The share of the budget in which the learning rate rises where AdamW restarts at the highest rate."""


@dataclass(frozen=True)
class Trained:
    """How a parent was trained, as far as its recovery asks.

    Attributes:
        optimizer: a name in ``OPTIMIZERS``.
        learning_rate: the highest of its training, > 0.
        loss: its mean on validation.
        weight_decay: >= 0.
    """

    optimizer: str
    learning_rate: float
    loss: float
    weight_decay: float


def restart(
    parent: Trained | None,
    loss: Callable[[], float],
    *,
    optimizer: str | None = None,
    learning_rate: float | None = None,
    schedule: str | None = None,
    weight_decay: float | None = None,
    warmup: float | None = None,
) -> dict[str, Any]:
    """The optimizer of the parent, and after AdamW a rate by how much was lost; what is given stays.

    1. SGD: 0.01, falling along a cosine.
    2. AdamW after AdamW, the loss rose by at most three tenths: a tenth of the parent's highest rate,
       constant.
    3. AdamW after AdamW, it rose by more, or is not finite: the parent's highest rate, along a cosine, after
       a warm-up of a tenth of the budget.

    AdamW after AdamW takes the parent's weight decay. All else is as :class:`TrainingSettings` has it.

    Args:
        parent: None where its training is not known: then SGD.
        loss: measures the mean loss of the cut model on validation; called where the rate depends on it.
        optimizer: given by the user.
        learning_rate: given by the user; then none of the cases holds, and the schedule is ``cosine`` unless
            it is given too.
        schedule: given by the user; ``one_cycle`` has a rise of its own and gets no warm-up.
        weight_decay: given by the user.
        warmup: given by the user.

    Returns:
        ``optimizer``, ``learning_rate``, ``schedule``, ``weight_decay`` and ``warmup``, as
        :class:`TrainingSettings` takes them.

    Source: of case 3, learning-rate rewinding, Renda et al., 2020, "Comparing Rewinding and Fine-tuning in
    Neural Network Pruning", section 2, https://arxiv.org/abs/2003.02389. Deviations: the schedule is squeezed
    into the budget, and the loss decides whether there is any rewinding (our own; docs/decisions.md).

    >>> parent = Trained("adamw", learning_rate=1e-4, loss=0.34, weight_decay=0.01)
    >>> little, much = restart(parent, lambda: 0.36), restart(parent, lambda: 0.57)
    >>> little["learning_rate"], little["schedule"], little["weight_decay"], little["warmup"]
    (1e-05, 'constant', 0.01, None)
    >>> much["learning_rate"], much["schedule"], much["weight_decay"], much["warmup"]
    (0.0001, 'cosine', 0.01, 0.1)
    """
    chosen = optimizer or (parent.optimizer if parent else "sgd")
    rate, shape, decay, rise = RATE, "cosine", TrainingSettings.weight_decay, None
    if parent is not None and chosen == parent.optimizer == "adamw":
        decay = parent.weight_decay
        if learning_rate is None:
            if loss() - parent.loss <= LITTLE * abs(parent.loss):  # Case 2.
                rate, shape = LOW * parent.learning_rate, "constant"
            else:  # Case 3.
                rate, rise = parent.learning_rate, None if schedule == "one_cycle" else RISE
    return {
        "optimizer": chosen,
        "learning_rate": rate if learning_rate is None else learning_rate,
        "schedule": schedule or shape,
        "weight_decay": decay if weight_decay is None else weight_decay,
        "warmup": rise if warmup is None else warmup,
    }
