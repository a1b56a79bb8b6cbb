"""How much training a run may spend: epochs, or a share of what the parent took."""

from __future__ import annotations

import math

from prunekit.errors import UsageError


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
