"""``mask_weights``: find, score, select and attach in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import CalibrationError
from prunekit.importance import (
    Weights,
    check_batches,
    find_weights,
    input_norms,
    score_weights,
    stored_parameter,
    weight_criterion,
)
from prunekit.importance.untouched import untouched
from prunekit.plan import MaskPlan, NOfM, Pattern, Scope, select_weights
from prunekit.plan.pattern import parse_pattern
from prunekit.surgery.weight_masks import attach_masks, zero_weights
from prunekit.workload import Batch


@dataclass(frozen=True)
class Masked:
    """What :func:`mask_weights` gives.

    Attributes:
        model: the masked model; :func:`prunekit.surgery.fold_masks` makes the masks permanent.
        plan: which weights stay.
    """

    model: nn.Module
    plan: MaskPlan


def mask_weights(
    model: nn.Module,
    *,
    sparsity: float | None = None,
    pattern: Pattern | str = "element",
    criterion: str = "magnitude",
    scope: Scope | str | None = None,
    only: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    input_dims: Mapping[str, int] | None = None,
    calibration: Iterable[Batch] | None = None,
    loss: Callable[[Any, Batch], Tensor] | None = None,
    seed: int = 0,
    in_place: bool = False,
    fold: bool = False,
) -> Masked:
    """Mask single weights of a model; shapes stay, and zeros save no time unless a runtime makes use of them.

    Args:
        model: any ``nn.Module``; left as it is unless ``in_place``.
        sparsity: the fraction of the weights that goes, in ``[0, 1]``; a pattern n:m has its own.
        pattern: ``element``, ``2:4`` (n of m inputs stay), ``4x8`` (blocks, rows x columns), ``row``,
            ``column``.
        criterion: a key of :data:`prunekit.importance.WEIGHT_CRITERIA`.
        scope: a key of :data:`prunekit.plan.WEIGHT_SCOPES` or a value; default each parameter by itself.
        only: patterns of the parameters or modules to mask; default :func:`find_weights`.
        ignore: patterns of what to leave alone.
        input_dims: by pattern, which dimension is the input where that is not known.
        calibration: batches for ``wanda``, ``taylor`` and ``snip``.
        loss: ``loss(outputs, batch)``, a scalar mean, for ``taylor`` and ``snip``; their gradients are the
            mean over the batches.
        seed: of the random criterion.
        in_place: mask ``model`` itself.
        fold: make the masks permanent at once, with exact zeros in plain parameters.

    Where parameters do not compete (``tensor``, ``row``, n:m) they are scored one after another, so that the
    scores of one are held; with ``in_place`` and ``fold`` no other copy of the weights is made.

    Raises:
        SelectionError: an unknown name, a pattern that matches nothing, nothing to mask.
        ShapeError: a parameter that the pattern does not divide.
        CalibrationError: statistics are needed and cannot be gathered, or hold NaN or infinity.
        PlanError: the model cannot be copied, or a parameter cannot be parametrized.
    """
    needs = weight_criterion(criterion).needs
    weights = find_weights(model, only=only, ignore=ignore, input_dims=input_dims)
    batches = () if calibration is None else calibration
    norms = gradients = None
    if needs == "norms":
        norms = input_norms(model, weights, batches)
    elif needs == "gradients":
        gradients = mean_gradients(model, weights, batches, loss)
    alone = isinstance(parse_pattern(pattern), NOfM) or scope in (None, "tensor", "row")
    parts = [weights]
    if alone and len(weights) and not weight_criterion(criterion).of_all:
        parts = [Weights((weight,), weights.fingerprint) for weight in weights]
    plans = []
    for part in parts:
        scores = score_weights(model, part, criterion, norms=norms, gradients=gradients, seed=seed)
        plans.append(
            select_weights(part, scores, sparsity=sparsity, pattern=pattern, scope=scope, criterion=criterion)
        )
    masks = {name: mask for plan in plans for name, mask in plan.masks.items()}
    plan = replace(plans[0], masks=masks)
    finish = zero_weights if fold else attach_masks
    return Masked(finish(model, plan, in_place=in_place), plan)


def mean_gradients(
    model: nn.Module,
    weights: Weights,
    batches: Iterable[Batch],
    loss: Callable[[Any, Batch], Tensor] | None,
) -> dict[str, Tensor]:
    """The gradient of the loss, averaged over the batches, by parameter; the model is left as found.

    Raises:
        CalibrationError: no loss, no batches, or a loss that does not depend on the parameters.
    """
    if not callable(loss):
        raise CalibrationError(
            "The criterion needs a loss and none was given",
            expected="loss(outputs, batch) that returns the mean loss of the batch",
            where="loss",
        )
    check_batches(batches)
    parameters = {weight.name: stored_parameter(model, weight) for weight in weights}
    sums: dict[str, Tensor] = {}
    count = 0
    with untouched(model, parameters.values()):
        for batch in batches:
            value = loss(model(*batch.args, **batch.kwargs), batch)
            if not value.requires_grad or value.numel() != 1:
                raise CalibrationError(
                    "The loss is no scalar that depends on the parameters",
                    where=f"loss of calibration batch {count}",
                )
            found = torch.autograd.grad(value.reshape(()), list(parameters.values()), allow_unused=True)
            for (name, parameter), gradient in zip(parameters.items(), found, strict=True):
                part = torch.zeros_like(parameter) if gradient is None else gradient
                sums[name] = sums[name].add_(part) if name in sums else part.clone()
            count += 1
    if not count:
        raise CalibrationError("There are no calibration batches", where="batches")
    return {name: total.div_(count) for name, total in sums.items()}
