"""The learning rate of every step: a linear warm-up, then one of a few shapes."""

from __future__ import annotations

import math
from collections.abc import Callable


def constant(progress: float) -> float:
    """``factor(p) = 1`` for ``p`` in [0, 1]."""
    return 1.0


def cosine(progress: float) -> float:
    """Fall from 1 to 0 along half a cosine.

    ``factor(p) = (1 + cos(pi p)) / 2`` for ``p`` in [0, 1].

    Source: Loshchilov & Hutter, 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", eq. 5 with
    ``eta_min = 0`` and one run, https://arxiv.org/abs/1608.03983. Deviation: none.

    >>> cosine(0.0), cosine(0.5), cosine(1.0)
    (1.0, 0.5, 0.0)
    """
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def linear_to_zero(progress: float) -> float:
    """``factor(p) = 1 - p`` for ``p`` in [0, 1]."""
    return 1.0 - progress


def one_cycle_rate(progress: float) -> float:
    """Rise along half a cosine for 30 % of the way, then fall to nearly 0 along another.

    ``factor = between(1/25, 1, p / 0.3)`` up to ``p = 0.3``, then ``between(1, 1/250000, (p - 0.3) / 0.7)``,
    with ``between(a, b, q) = b + (a - b) (1 + cos(pi q)) / 2``. It has its own warm-up.

    Source: Smith & Topin, 2018, "Super-Convergence: Very Fast Training of Neural Networks Using Large
    Learning Rates", https://arxiv.org/abs/1708.07120, with the shares of
    ``torch.optim.lr_scheduler.OneCycleLR``. Deviation: the momentum stays.

    >>> round(one_cycle_rate(0.0), 6), one_cycle_rate(0.3)
    (0.04, 1.0)
    """
    if progress < _RISE:
        return 1.0 - 0.96 * cosine(progress / _RISE)
    return _LAST + (1.0 - _LAST) * cosine((progress - _RISE) / (1.0 - _RISE))


_RISE, _LAST = 0.3, 1 / 250_000

LEARNING_RATES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear_to_zero,
    "one_cycle": one_cycle_rate,
}
"""Every learning-rate schedule by its name in a recipe: progress after the warm-up -> share of the peak."""


def learning_rate(
    step: float, *, steps: float, peak: float, schedule: str, warmup: float, rewind_to: float = 0.0
) -> float:
    """The learning rate of step ``step`` out of ``steps``.

    With ``w = floor(warmup * steps)``: ``peak * (step + 1) / (w + 1)`` while ``step < w``, then
    ``peak * factor((step - w) / (steps - w))``.

    Learning-rate rewinding: with ``rewind_to`` the steps are the last ``1 - rewind_to`` of a schedule of
    ``steps / (1 - rewind_to)`` steps. A retraining of ``1 - rewind_to`` of the parent's steps goes through
    the parent's own learning rates from there on.

    Args:
        step: counted from 0.
        steps: the number of steps of the whole run.
        peak: the largest learning rate.
        schedule: a name in :data:`LEARNING_RATES`.
        warmup: share of the whole schedule in which the learning rate rises, in [0, 1).
        rewind_to: progress in the schedule at which step 0 is, in [0, 1).

    Returns:
        In [0, ``peak``].

    Source: of rewinding, Renda et al., 2020, "Comparing Rewinding and Fine-tuning in Neural Network Pruning",
    section 2, https://arxiv.org/abs/2003.02389. Deviation: in shares of the training in place of epochs.

    >>> [learning_rate(step, steps=4, peak=3.0, schedule="constant", warmup=0.5) for step in range(4)]
    [1.0, 2.0, 3.0, 3.0]
    """
    whole = steps / (1 - rewind_to)
    step, steps = step + (whole - steps), whole
    rising = math.floor(warmup * steps)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    return peak * LEARNING_RATES[schedule]((step - rising) / (steps - rising))
