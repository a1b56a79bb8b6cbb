"""What a study brings: a trained parent, its data, how it is cut, and how a recovery is set up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from benchmarks.recovery.cuts import Cut
from benchmarks.recovery.parents import Parent
from torch import nn

from prunekit.recipe.sections import Recover
from prunekit.recover import Trained, TrainingSettings, budget_in_epochs, restart, task_of, validate
from prunekit.workload import Batch, Workload


@dataclass(frozen=True)
class Subject:
    """A parent and all that its cells need.

    Attributes:
        parent: trained by the seed of the cells.
        workload: its splits are read; the test split only for the last figure of a cell.
        training: of the parent; batch size, optimizer, momentum and decay are those of plain fine-tuning.
        example: inputs for tracing.
        cuts: by kind, how that much of a model goes.
        seed: of the parent.
    """

    parent: Parent
    workload: Workload
    training: TrainingSettings
    example: Batch
    cuts: Mapping[str, Cut]
    seed: int

    def settings(self, budget: float, rates: str, cut: nn.Module) -> TrainingSettings:
        """Of a recovery of ``cut`` that sees ``budget`` times the examples that the parent's training saw."""
        epochs = budget_in_epochs(
            train_examples=len(self.workload.splits.train),
            share_of_original=budget,
            original_examples_seen=self.parent.examples_seen,
        )
        return replace(RATES[rates](self, cut), epochs=epochs, seed=self.seed)

    @cached_property
    def trained(self) -> Trained:
        """How the parent was trained."""
        return Trained(
            self.training.optimizer,
            self.parent.peak,
            self.loss(self.parent.model),
            self.training.weight_decay,
        )

    def loss(self, model: nn.Module) -> float:
        """On the validation split."""
        return validate(model, task_of(self.workload), batch_size=256)[0]


def _defaults(subject: Subject, cut: nn.Module, optimizer: str | None = None) -> TrainingSettings:
    own: dict[str, Any] = Recover().model_dump(exclude={"epochs", "share_of_original", "recalibrate"})
    known = {name: value for name, value in own.items() if name in TrainingSettings.__dataclass_fields__}
    begun = restart(subject.trained, lambda: subject.loss(cut), optimizer=optimizer)
    return TrainingSettings(**known | begun | {"batch_size": subject.training.batch_size})


def _sgd(subject: Subject, cut: nn.Module) -> TrainingSettings:
    return _defaults(subject, cut, "sgd")


def _last(subject: Subject, cut: nn.Module) -> TrainingSettings:
    return replace(subject.training, learning_rate=subject.parent.last, schedule="constant", warmup=0.0)


def _peak(subject: Subject, cut: nn.Module) -> TrainingSettings:
    return replace(subject.training, learning_rate=subject.parent.peak, schedule="cosine")


def _middle(subject: Subject, cut: nn.Module) -> TrainingSettings:
    return replace(subject.training, learning_rate=subject.parent.peak * 0.3, schedule="cosine")


RATES: dict[str, Callable[[Subject, nn.Module], TrainingSettings]] = {
    "defaults": _defaults,
    "sgd": _sgd,
    "last": _last,
    "peak": _peak,
    "middle": _middle,
}
"""How a recovery trains:

- ``defaults``: what a recipe without a word about it gets, by the parent's optimizer and what was lost, but
  for the batch size, which is the parent's;
- ``sgd``: what it gets by SGD at 0.01 whatever trained the parent;
- ``last``: plain fine-tuning, the parent's optimizer at the last learning rate of its training, constant;
- ``peak``: the parent's optimizer at its highest learning rate, falling along a cosine: learning-rate
  rewinding (Renda, Frankle & Carbin, 2020, https://arxiv.org/abs/2003.02389) squeezed into the budget;
- ``middle``: the same at three tenths of that rate.

Rows called ``earlier`` are of the defaults as they were first: after AdamW 5 % warm-up and a weight decay of
0.0005, and the highest rate only where the loss rose by more than a half. They are not measured again.
"""
