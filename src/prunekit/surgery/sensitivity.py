"""Measuring what losing weights costs: one parameter masked at a time, the user's own loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from prunekit.errors import CalibrationError, SelectionError
from prunekit.importance import Weights, WeightScores, WeightTensor, stored_parameter
from prunekit.plan import MaskPlan, Pattern, select_weights


def measure_sensitivity(
    model: nn.Module,
    weights: Weights,
    scores: WeightScores,
    loss: Callable[[nn.Module], float],
    *,
    sparsities: Iterable[float] = (0.25, 0.5, 0.75, 0.9),
    pattern: Pattern | str = "element",
    criterion: str = "",
) -> dict[str, dict[float, float]]:
    """Measure, for each parameter alone, by how much the loss grows at each sparsity.

    ``curve[l][s] = loss(model with l masked) - loss(model)``. The parameter's values are set to zero in place
    and put back afterwards, also after an error; nothing else is touched, and ``loss`` decides about modes.

    Args:
        model: the model the weights were found on.
        weights: the parameters to measure.
        scores: what decides which weights go.
        loss: the loss of a model on data of your choice; never test data. Give the same data every time.
        sparsities: where to measure, above 0; at 1 the parameter is all zero.
        pattern: as in :func:`prunekit.plan.select_weights`; not n:m, which has one sparsity.
        criterion: what scored the weights.

    Returns:
        Curves for :class:`prunekit.plan.BySensitivity`.

    Raises:
        CalibrationError: a loss that is not a finite number.
        SelectionError: no sparsities, or 0 among them.
    """
    grid = sorted(set(sparsities))
    if not grid or not 0 < grid[0] <= grid[-1] <= 1:
        raise SelectionError(
            f"The sparsities are {grid}", expected="numbers above 0, up to 1", where="sparsities"
        )
    dense = finite_loss(loss(model), "the dense model")
    curves: dict[str, dict[float, float]] = {}
    for weight in weights:
        alone = Weights((weight,), weights.fingerprint)
        curves[weight.name] = {}
        for sparsity in grid:
            plan = select_weights(alone, scores, sparsity=sparsity, pattern=pattern, criterion=criterion)
            found = _loss_with(model, weight, plan, loss)
            curves[weight.name][sparsity] = finite_loss(found, f"'{weight.name}' at {sparsity}") - dense
    return curves


def _loss_with(
    model: nn.Module, weight: WeightTensor, plan: MaskPlan, loss: Callable[[nn.Module], float]
) -> float:
    parameter = stored_parameter(model, weight)
    keep = torch.from_numpy(plan.masks[weight.name].keep()).to(parameter.device)
    with torch.no_grad():
        values = parameter.detach().clone()
        try:
            parameter.masked_fill_(~keep, 0.0)
            return loss(model)
        finally:
            parameter.copy_(values)


def finite_loss(value: object, where: str) -> float:
    """What a loss gave, as a number; CalibrationError where it is not a finite one."""
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number):
        raise CalibrationError(f"The loss is {number}", expected="a finite number", where=where)
    return number
