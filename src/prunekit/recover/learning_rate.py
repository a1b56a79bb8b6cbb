"""The learning rate of every step: a linear warm-up, then a constant or a cosine."""

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


LEARNING_RATES: dict[str, Callable[[float], float]] = {"constant": constant, "cosine": cosine}
"""Every learning-rate schedule by its name in a recipe: progress after the warm-up -> share of the peak."""


def learning_rate(step: int, *, steps: int, peak: float, schedule: str, warmup: float) -> float:
    """The learning rate of step ``step`` out of ``steps``.

    With ``w = floor(warmup * steps)``: ``peak * (step + 1) / (w + 1)`` while ``step < w``, then
    ``peak * factor((step - w) / (steps - w))``.

    Args:
        step: counted from 0.
        steps: the number of steps of the whole run.
        peak: the largest learning rate.
        schedule: a name in :data:`LEARNING_RATES`.
        warmup: share of the steps in which the learning rate rises, in [0, 1).

    >>> [learning_rate(step, steps=4, peak=3.0, schedule="constant", warmup=0.5) for step in range(4)]
    [1.0, 2.0, 3.0, 3.0]
    """
    rising = math.floor(warmup * steps)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    return peak * LEARNING_RATES[schedule]((step - rising) / (steps - rising))
