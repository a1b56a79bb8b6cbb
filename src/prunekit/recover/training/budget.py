"""How much training a run may spend, in one of five units or as a share of what the parent took."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from prunekit.errors import UsageError

Unit = Literal["epochs", "steps", "examples", "tokens", "seconds"]
UNITS: tuple[Unit, ...] = get_args(Unit)
"""What a budget can be counted in."""


@dataclass(frozen=True)
class Spent:
    """What a run has used so far.

    Attributes:
        steps: optimizer steps.
        examples: training examples, each counted as often as it was seen.
        tokens: of these examples; 0 unless they are counted.
        seconds: wall time, validation and checkpoints included, that of earlier processes of the run too.
    """

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Budget:
    """How much a run may use.

    Attributes:
        unit: what is counted.
        amount: > 0, or 0 epochs for no training at all; whole for all units but epochs and seconds.
    """

    unit: Unit
    amount: float

    def in_steps(self, *, train_examples: int, batch_size: int) -> int | None:
        """Optimizer steps that it lasts; None where only the run itself can tell (tokens and seconds).

        A number of examples is rounded to whole steps, at least one.
        """
        if self.unit == "steps":
            return int(self.amount)
        if self.unit not in ("epochs", "examples"):
            return None
        epochs = self.amount if self.unit == "epochs" else self.amount / train_examples
        return budget_in_steps(epochs, train_examples=train_examples, batch_size=batch_size)

    def share(self, spent: Spent, *, steps: int | None) -> float:
        """How much of it is used, from 0; 1 and more = the run is over.

        Args:
            spent: so far.
            steps: from :meth:`in_steps`.

        >>> Budget("seconds", 60).share(Spent(steps=3, seconds=15.0), steps=None)
        0.25
        """
        if steps is not None:
            return spent.steps / steps if steps else 1.0
        return (spent.tokens if self.unit == "tokens" else spent.seconds) / self.amount


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Optimizer steps in one pass over ``examples``.

    ``ceil(examples / batch_size)``, one less where the last batch would hold a single example: it joins the
    batch before it, because batch normalisation has no variance over one example.

    >>> steps_per_epoch(100, 32), steps_per_epoch(97, 32), steps_per_epoch(1, 32)
    (4, 3, 1)
    """
    steps = math.ceil(examples / batch_size)
    return steps - 1 if steps > 1 and batch_size > 1 and examples % batch_size == 1 else steps


def budget_in_epochs(
    *,
    train_examples: int,
    epochs: float | None = None,
    share_of_original: float | None = None,
    original_examples_seen: int | None = None,
) -> float:
    """A budget as epochs over the train split, for ``TrainingSettings.epochs``.

    ``share_of_original * original_examples_seen / train_examples``, or ``epochs`` as they are. Counted in
    examples and not in steps, so that a run with smaller batches has no more of them.

    Args:
        train_examples: size of the train split, at least 1.
        epochs: the budget in epochs, >= 0; may be fractional.
        share_of_original: the budget as a share of the parent's training, >= 0.
        original_examples_seen: what the parent's training took (``TrainingRecord.examples_seen``); None where
            the parent came from a checkpoint.

    Raises:
        UsageError: not exactly one of the two was given, it is negative or not finite, or a share is asked
            for where nobody knows what the parent took.

    >>> budget_in_epochs(train_examples=100, share_of_original=0.25, original_examples_seen=2000)
    5.0
    """
    if (epochs is None) == (share_of_original is None):
        raise UsageError(
            f"the budget is epochs={epochs}, share_of_original={share_of_original}",
            expected="exactly one of the two",
        )
    amount = epochs if epochs is not None else share_of_original
    assert amount is not None
    if not (math.isfinite(amount) and amount >= 0):
        raise UsageError(f"the training budget is {amount}", expected="a finite number that is not negative")
    if epochs is not None:
        return float(epochs)
    if original_examples_seen is None:
        raise UsageError(
            "the budget is a share of the parent's training, and the parent came from a checkpoint",
            expected="a budget in epochs",
            remedy="Give `epochs`",
        )
    return amount * original_examples_seen / train_examples


def budget_in_steps(epochs: float, *, train_examples: int, batch_size: int) -> int:
    """Optimizer steps in ``epochs`` (may be fractional): at least 1 unless ``epochs`` is 0.

    >>> budget_in_steps(2.5, train_examples=100, batch_size=25)
    10
    >>> budget_in_steps(0, train_examples=100, batch_size=25)
    0
    """
    steps = round(epochs * steps_per_epoch(train_examples, batch_size))
    return max(steps, 1) if epochs > 0 else 0
