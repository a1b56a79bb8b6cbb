"""The settings of a training run, checked, and the record of what it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from prunekit.errors import UsageError
from prunekit.recover.numbers import check, is_number, is_whole
from prunekit.recover.training.budget import UNITS, Budget
from prunekit.recover.training.learning_rate import LEARNING_RATES
from prunekit.recover.training.optimizers import OPTIMIZERS

EPOCHS = 10.0
"""The budget where none is given."""

WARMUP = 0.05
"""The share of a run in which the learning rate rises, where nothing is said and the shape does not rise."""


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    The budget is one of ``epochs``, ``steps``, ``examples``, ``tokens`` and ``seconds``; without any of them
    it is 10 epochs.

    Attributes:
        epochs: passes over the train split, >= 0; a fraction ends in the middle of one.
        steps: optimizer steps, >= 1.
        examples: training examples, each counted as often as it is seen, >= 1.
        tokens: of the training examples, >= 1: what the ``attention_mask`` of a batch lets through, or else
            the elements of its first integer input.
        seconds: of wall time, > 0. How many steps that makes depends on the machine, so such a run is not
            repeated bit by bit.
        batch_size: examples per optimizer step, >= 1, of all processes together.
        accumulate: the parts in which each process runs the examples of a step through the model, >= 1; less
            memory, the same gradient but for batch norms.
        learning_rate: the peak, > 0.
        optimizer: ``sgd`` (with Nesterov momentum) or ``adamw``.
        momentum: of SGD, in [0, 1); AdamW has its own.
        weight_decay: >= 0, on tensors of two or more dimensions only: no bias, no norm scale.
        schedule: ``cosine``, ``linear``, ``constant`` or ``one_cycle``, after the warm-up.
        warmup: share of the budget in which the learning rate rises, in [0, 1); None = 0.05, and 0 for
            ``one_cycle``, which has a rise of its own.
        rewind_to: where on the schedule of the learning rate training begins, in [0, 1): with 0.5 it runs
            through the second half of it. Learning-rate rewinding.
        clip_norm: the largest L2 norm of all gradients together, > 0; None = no clipping.
        precision: ``fp32``, or ``bf16`` for automatic mixed precision; weights and validation stay as the
            model has them.
        ema: decay of an exponential moving average of all weights and buffers, in (0, 1); the average is what
            is validated and what the model has in the end. None = no average.
        validate_every: optimizer steps between two validations, >= 1; None = after every epoch.
        patience: stop after this many validations without a better one, >= 1; None = never.
        select: what is better on validation: a higher ``metric`` (ties: a lower loss), or a lower ``loss``.
        workers: processes that read training examples ahead, >= 0; 0 = this one reads them.
        seed: of the order of examples, augmentation and dropout.
    """

    epochs: float | None = None
    steps: int | None = None
    examples: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    batch_size: int = 64
    accumulate: int = 1
    learning_rate: float = 0.05
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "linear", "constant", "one_cycle"] = "cosine"
    warmup: float | None = None
    rewind_to: float = 0.0
    clip_norm: float | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    ema: float | None = None
    validate_every: int | None = None
    patience: int | None = None
    select: Literal["metric", "loss"] = "metric"
    workers: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        given = {unit: value for unit in UNITS if (value := getattr(self, unit)) is not None}
        if len(given) > 1:
            raise UsageError(
                f"the budget is {' and '.join(f'{unit}={value!r}' for unit, value in given.items())}",
                expected=f"one of {', '.join(UNITS)}",
                where="training settings",
            )
        for name, (expected, is_right) in _RULES.items():
            value = getattr(self, name)
            check(name, value, expected, is_right(value), where="training settings")
        if self.schedule == "one_cycle" and self.warmup:
            raise UsageError(
                f"warmup is {self.warmup!r} and the schedule is one_cycle",
                expected="no warmup: the schedule has its own",
                where="training settings",
            )

    @property
    def budget(self) -> Budget:
        """The one budget that counts."""
        for unit in UNITS:
            amount = getattr(self, unit)
            if amount is not None:
                return Budget(unit, amount)
        return Budget("epochs", EPOCHS)

    @property
    def rise(self) -> float:
        """The share of the budget in which the learning rate rises."""
        if self.warmup is not None:
            return self.warmup
        return 0.0 if self.schedule == "one_cycle" else WARMUP


@dataclass(frozen=True)
class EpochRecord:
    """One line of the training log: what a validation found.

    Attributes:
        epoch: passes made when it was written; 0 is the model as it came.
        step: optimizer steps made.
        train_loss: mean over the examples since the line before, as they were trained on; None before the
            first step.
        validation_loss: mean over the validation split.
        validation_metric: mean of the workload's metric over the validation split; None without one.
        learning_rate: of the last step; None before the first.
        seconds: wall time since the line before, with this validation.
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
        steps_planned: optimizer steps in the budget; for tokens and seconds, those made.
        examples_seen: training examples, each counted as often as it was seen.
        seconds: wall time.
        tokens_seen: tokens of these examples; None unless the budget is counted in them.
        resumed_at: the step of the checkpoint that it went on from; None = from the beginning.
    """

    metric: str
    epochs: tuple[EpochRecord, ...]
    best: int
    stopped_early: bool
    steps: int
    steps_planned: int
    examples_seen: int
    seconds: float
    tokens_seen: int | None = None
    resumed_at: int | None = None


def _count(value: Any) -> bool:
    return is_whole(value) and value >= 1


def _maybe(is_right: Any) -> Any:
    return lambda value: value is None or is_right(value)


_RULES: dict[str, tuple[str, Any]] = {
    "epochs": ("a finite number >= 0", _maybe(lambda value: is_number(value) and value >= 0)),
    "steps": ("an integer >= 1; epochs=0 for no training", _maybe(_count)),
    "examples": ("an integer >= 1; epochs=0 for no training", _maybe(_count)),
    "tokens": ("an integer >= 1; epochs=0 for no training", _maybe(_count)),
    "seconds": (
        "a finite number > 0; epochs=0 for no training",
        _maybe(lambda value: is_number(value) and value > 0),
    ),
    "batch_size": ("an integer >= 1", _count),
    "accumulate": ("an integer >= 1", _count),
    "learning_rate": ("a finite number > 0", lambda value: is_number(value) and value > 0),
    "optimizer": (f"one of {', '.join(OPTIMIZERS)}", lambda value: value in OPTIMIZERS),
    "momentum": ("a number in [0, 1)", lambda value: is_number(value) and 0 <= value < 1),
    "weight_decay": ("a finite number >= 0", lambda value: is_number(value) and value >= 0),
    "schedule": (f"one of {', '.join(LEARNING_RATES)}", lambda value: value in LEARNING_RATES),
    "warmup": ("a share in [0, 1), or none", _maybe(lambda value: is_number(value) and 0 <= value < 1)),
    "rewind_to": ("a share in [0, 1)", lambda value: is_number(value) and 0 <= value < 1),
    "clip_norm": ("a finite number > 0, or none", _maybe(lambda value: is_number(value) and value > 0)),
    "precision": ("fp32 or bf16", lambda value: value in {"fp32", "bf16"}),
    "ema": ("a number in (0, 1), or none", _maybe(lambda value: is_number(value) and 0 < value < 1)),
    "validate_every": ("an integer >= 1, or none", _maybe(_count)),
    "patience": ("an integer >= 1, or none", _maybe(_count)),
    "select": ("metric or loss", lambda value: value in {"metric", "loss"}),
    "workers": ("an integer >= 0", lambda value: is_whole(value) and value >= 0),
    "seed": ("an integer from 0 to 2**32 - 1", lambda value: is_whole(value) and 0 <= value < 2**32),
}
"""Setting -> what is expected of it, and whether a value is that."""
