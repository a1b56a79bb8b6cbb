"""Optimizer and learning rate of a recovery where nobody says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RATE = 0.01
"""Of a recovery by SGD, or of one whose parent was trained by another optimizer or is not known."""

LEAST = 0.1
"""The share of the parent's highest learning rate that a recovery by AdamW has at least."""


@dataclass(frozen=True)
class Trained:
    """How a parent was trained, as far as its recovery asks.

    Attributes:
        optimizer: a name in ``OPTIMIZERS``.
        learning_rate: the highest of its training, > 0.
        loss: its mean on validation.
    """

    optimizer: str
    learning_rate: float
    loss: float


def restart(
    parent: Trained | None,
    loss: Callable[[], float],
    *,
    optimizer: str | None = None,
    learning_rate: float | None = None,
    schedule: str | None = None,
) -> dict[str, Any]:
    """The optimizer of the parent, and after AdamW a constant rate by how much was lost; what is given stays.

    Args:
        parent: None where its training is not known: then SGD.
        loss: measures the mean loss of the cut model on validation; called where the rate depends on it.
        optimizer: given by the user.
        learning_rate: given by the user.
        schedule: given by the user.

    Returns:
        ``optimizer``, ``learning_rate`` and ``schedule``, as :class:`TrainingSettings` takes them.
    """
    chosen, shape = optimizer or (parent.optimizer if parent else "sgd"), "cosine"
    if learning_rate is None:
        learning_rate = RATE
        if parent is not None and chosen == parent.optimizer == "adamw":
            learning_rate = restart_rate(parent.learning_rate, before=parent.loss, after=loss())
            shape = "constant"
    return {"optimizer": chosen, "learning_rate": learning_rate, "schedule": schedule or shape}


def restart_rate(highest: float, *, before: float, after: float) -> float:
    """A learning rate for AdamW that is the higher, the more a cut has raised the loss.

    ``rate = highest * min(1, max(0.1, (after - before) / |before|))``

    Args:
        highest: learning rate of the parent's training, > 0.
        before: the parent's mean loss on validation.
        after: that of the cut model.

    Returns:
        From a tenth of ``highest`` to ``highest``; ``highest`` where ``after`` is not finite.

    Source: our own, from what was best on validation data where heads, neurons or layers of an encoder
    went (docs/decisions.md). That the rate goes back up after a cut is learning-rate rewinding: Renda et
    al., 2020, "Comparing Rewinding and Fine-tuning in Neural Network Pruning", section 2,
    https://arxiv.org/abs/2003.02389. Deviation: how far is decided by the loss, not by an epoch.

    >>> [restart_rate(1e-4, before=0.4, after=loss) for loss in (0.3, 0.41, 0.6, 2.0)]
    [1e-05, 1e-05, 4.999999999999999e-05, 0.0001]
    """
    if not math.isfinite(after):
        return highest
    rise = after - before
    share = rise / abs(before) if before else math.copysign(math.inf, rise) if rise else 0.0
    return highest * min(1.0, max(LEAST, share))
