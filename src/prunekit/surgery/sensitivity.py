"""Measuring what losing weights costs: one parameter masked at a time, the user's own loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from prunekit.errors import CalibrationError, PrunekitError, SelectionError
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
        CalibrationError: a loss that raises, or that is not one finite number; says at which parameter.
        SelectionError: no sparsities, or 0 among them.
    """
    grid = sorted(set(sparsities))
    if not grid or not 0 < grid[0] <= grid[-1] <= 1:
        raise SelectionError(
            f"The sparsities are {grid}", expected="numbers above 0, up to 1", where="sparsities"
        )
    dense = loss_of(loss, model, "the dense model")
    curves: dict[str, dict[float, float]] = {}
    for weight in weights:
        alone = Weights((weight,), weights.fingerprint)
        curves[weight.name] = {}
        for sparsity in grid:
            plan = select_weights(alone, scores, sparsity=sparsity, pattern=pattern, criterion=criterion)
            where = f"'{weight.name}' at {sparsity}"
            curves[weight.name][sparsity] = _loss_with(model, weight, plan, loss, where) - dense
    return curves


def _loss_with(
    model: nn.Module, weight: WeightTensor, plan: MaskPlan, loss: Callable[[nn.Module], float], where: str
) -> float:
    parameter = stored_parameter(model, weight)
    keep = torch.from_numpy(plan.masks[weight.name].keep()).to(parameter.device)
    with torch.no_grad():
        values = parameter.detach().clone()
        try:
            parameter.masked_fill_(~keep, 0.0)
            return loss_of(loss, model, where)
        finally:
            parameter.copy_(values)


def loss_of(loss: Callable[[nn.Module], float], model: nn.Module, where: str) -> float:
    """What the user's own loss says of a model, as a number.

    Args:
        loss: of a model; a tensor or an array of one element counts as a number too.
        model: to be judged.
        where: which model that is, for errors.

    Raises:
        CalibrationError: the loss raised something, which is the cause; or it gave no number, several, or one
            that is not finite. Errors of prunekit itself pass as they are.
    """
    try:
        found: Any = loss(model)
    except PrunekitError:
        raise
    except Exception as error:
        raise CalibrationError(
            f"The loss raised {type(error).__name__}: {error}",
            expected="a number",
            where=where,
            remedy="Call the loss on this model by itself to see where",
        ) from error
    return _number(found, where)


def _number(found: Any, where: str) -> float:
    """A finite number.

    Raises:
        CalibrationError: otherwise.
    """
    if isinstance(found, torch.Tensor):
        found = found.detach()
    if isinstance(found, torch.Tensor | np.ndarray) and math.prod(found.shape) != 1:
        raise CalibrationError(
            f"The loss gave a {type(found).__name__} of the shape {list(found.shape)}",
            expected="one number",
            where=where,
            remedy="Take the mean over the examples inside the loss",
        )
    try:
        number = float(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CalibrationError(
            f"The loss gave {found!r}", expected="a number", where=where, remedy="Return one from the loss"
        ) from error
    if not math.isfinite(number):
        raise CalibrationError(
            f"The loss is {number}",
            expected="a finite number",
            where=where,
            remedy="Look at the model's outputs there, and at what the loss makes of them",
        )
    return number
