"""The settings of a training run, checked, and the record of what it did."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from prunekit.errors import UsageError
from prunekit.recover.learning_rate import LEARNING_RATES
from prunekit.recover.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        epochs: passes over the train split, >= 0; a fraction ends in the middle of one.
        batch_size: examples per step, >= 1.
        learning_rate: the peak, > 0.
        optimizer: ``sgd`` (with Nesterov momentum) or ``adamw``.
        momentum: of SGD, in [0, 1); AdamW has its own.
        weight_decay: >= 0, on tensors of two or more dimensions only: no bias, no norm scale.
        schedule: ``cosine`` or ``constant``, after the warm-up.
        warmup: share of the steps in which the learning rate rises, in [0, 1).
        clip_norm: the largest L2 norm of all gradients together, > 0; None = no clipping.
        patience: stop after this many epochs without a better validation, >= 1; None = never.
        select: what is better on validation: a higher ``metric`` (ties: a lower loss), or a lower ``loss``.
        seed: of the order of examples, augmentation and dropout.
    """

    epochs: float = 10.0
    batch_size: int = 64
    learning_rate: float = 0.05
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = 0.05
    clip_norm: float | None = None
    patience: int | None = None
    select: Literal["metric", "loss"] = "metric"
    seed: int = 0

    def __post_init__(self) -> None:
        _check("epochs", self.epochs, "a finite number >= 0", _finite(self.epochs) and self.epochs >= 0)
        _check(
            "batch_size", self.batch_size, "an integer >= 1", _whole(self.batch_size) and self.batch_size >= 1
        )
        positive = _finite(self.learning_rate) and self.learning_rate > 0
        _check("learning_rate", self.learning_rate, "a finite number > 0", positive)
        _check("optimizer", self.optimizer, f"one of {', '.join(OPTIMIZERS)}", self.optimizer in OPTIMIZERS)
        _check(
            "momentum", self.momentum, "a number in [0, 1)", _finite(self.momentum) and 0 <= self.momentum < 1
        )
        decays = _finite(self.weight_decay) and self.weight_decay >= 0
        _check("weight_decay", self.weight_decay, "a finite number >= 0", decays)
        _check(
            "schedule", self.schedule, f"one of {', '.join(LEARNING_RATES)}", self.schedule in LEARNING_RATES
        )
        _check("warmup", self.warmup, "a share in [0, 1)", _finite(self.warmup) and 0 <= self.warmup < 1)
        clips = self.clip_norm is None or (_finite(self.clip_norm) and self.clip_norm > 0)
        _check("clip_norm", self.clip_norm, "a finite number > 0, or none", clips)
        waits = self.patience is None or (_whole(self.patience) and self.patience >= 1)
        _check("patience", self.patience, "an integer >= 1, or none", waits)
        _check("select", self.select, "metric or loss", self.select in {"metric", "loss"})
        _check(
            "seed", self.seed, "an integer from 0 to 2**32 - 1", _whole(self.seed) and 0 <= self.seed < 2**32
        )


@dataclass(frozen=True)
class EpochRecord:
    """One line of the training log.

    Attributes:
        epoch: passes made when it was written; 0 is the model as it came.
        step: optimizer steps made.
        train_loss: mean over the examples of this epoch, as they were trained on; None before the first step.
        validation_loss: mean over the validation split.
        validation_metric: mean of the workload's metric over the validation split; None without one.
        learning_rate: of the last step; None before the first.
        seconds: wall time of this epoch with its validation.
    """

    epoch: float
    step: int
    train_loss: float | None
    validation_loss: float
    validation_metric: float | None
    learning_rate: float | None
    seconds: float


@dataclass(frozen=True)
class TrainingRecord:
    """What a training run did.

    Attributes:
        metric: the name of the validation metric.
        epochs: the log; the first line is the model as it came.
        best: index in ``epochs`` of the line whose weights the model has now.
        stopped_early: whether patience ran out before the budget did.
        steps: optimizer steps made.
        steps_planned: optimizer steps in the budget.
        examples_seen: training examples, each counted as often as it was seen.
        seconds: wall time.
    """

    metric: str
    epochs: tuple[EpochRecord, ...]
    best: int
    stopped_early: bool
    steps: int
    steps_planned: int
    examples_seen: int
    seconds: float


def _check(name: str, value: Any, expected: str, right: bool) -> None:
    if not right:
        raise UsageError(f"{name} is {value!r}", expected=expected, where="training settings")


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
