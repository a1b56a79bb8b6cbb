"""Iterative masking: score, mask, recover, again and again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from prunekit.plan import MaskPlan
from prunekit.recover.numbers import check, is_number
from prunekit.recover.rewinding import EarlyPoint, rewind
from prunekit.recover.schedules import Curve, shares
from prunekit.surgery import mask_weights


def mask_in_cycles(
    model: nn.Module,
    recover: Callable[[nn.Module, int], Any],
    *,
    sparsity: float,
    cycles: int,
    curve: Curve | None = None,
    point: EarlyPoint | None = None,
    **options: Any,
) -> MaskPlan:
    """Mask a model little by little, in place, and let it recover after every cycle.

    Cycle ``i`` (from 1) masks ``sparsity * curve(i / cycles)`` of the weights by their scores as they are
    then; without a curve ``1 - (1 - sparsity) ** (i / cycles)``, the same share of what is left each time.

    Args:
        model: masked in place; :func:`prunekit.fold_masks` makes the masks permanent.
        recover: ``recover(model, cycle)`` trains it after a cycle, counted from 1. Parameters stay the same
            objects from cycle to cycle.
        sparsity: after the last cycle, in (0, 1).
        cycles: at least 1.
        curve: a name in :data:`SCHEDULES`, or pairs of progress and share; None = as above.
        point: lottery-ticket rewinding: before each recovery the weights go back to this point.
        options: for :func:`prunekit.mask_weights`, such as ``criterion``, ``scope`` or ``ignore``.

    Returns:
        Which weights stay.

    Raises:
        UsageError: a sparsity, a number of cycles or a curve that is none.
        PlanError: the point belongs to another model.
        SelectionError, ShapeError, CalibrationError: as :func:`prunekit.mask_weights`.

    Source: Han et al., 2015, https://arxiv.org/abs/1506.02626, section 3.4; Frankle & Carbin, 2019, "The
    Lottery Ticket Hypothesis", strategy 1 (``p ** (1 / n)`` in each round),
    https://arxiv.org/abs/1803.03635, with ``point`` taken early instead of at the start (Frankle et al.,
    2020, https://arxiv.org/abs/1912.05671).
    """
    inside = is_number(sparsity) and 0 < sparsity < 1
    check("sparsity", sparsity, "a number between 0 and 1", inside, where="mask_in_cycles")
    way = shares("linear" if curve is None else curve, cycles)
    plan = None
    for cycle, share in enumerate(way, start=1):
        gone = 1 - (1 - sparsity) ** share if curve is None and share < 1 else sparsity * share
        plan = mask_weights(model, sparsity=gone, in_place=True, **options).plan
        if point is not None:
            rewind(model, point)
        recover(model, cycle)
    assert plan is not None
    return plan
