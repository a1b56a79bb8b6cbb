"""``mask_weights``: find, score, select and attach in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from prunekit.importance import (
    Weights,
    check_seed,
    find_weights,
    input_norms,
    mean_gradients,
    score_weights,
    weight_criterion,
)
from prunekit.plan import MaskPlan, Pattern, Scope, check_selection, select_weights
from prunekit.surgery.weight_masks import attach_masks, zero_weights
from prunekit.workload import Batch


@dataclass(frozen=True)
class Masked:
    """What :func:`mask_weights` gives.

    Attributes:
        model: the masked model; :func:`prunekit.surgery.fold_masks` makes the masks permanent.
        plan: which weights stay.
        left_out: weights that were meant and cannot be masked, by name the reason.
    """

    model: nn.Module
    plan: MaskPlan
    left_out: Mapping[str, str] = field(default_factory=dict)


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
        scope: a key of :data:`prunekit.plan.WEIGHT_SCOPES` or a value; default the criterion's: each row by
            itself for ``wanda``, the whole model for ``lamp``, else each parameter by itself.
        only: patterns of the parameters or modules, which narrow what :func:`find_weights` chooses; the full
            name of a parameter takes it whatever it is.
        ignore: patterns of what to leave alone.
        input_dims: by pattern, which dimension is the input where that is not known.
        calibration: batches for ``wanda``, ``taylor`` and ``snip``.
        loss: ``loss(outputs, batch)``, the mean loss of a batch, for ``taylor`` and ``snip``; their gradients
            are the mean over the examples.
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
    check_seed(seed)
    weights = find_weights(model, only=only, ignore=ignore, input_dims=input_dims)
    asked = check_selection(weights, sparsity=sparsity, pattern=pattern, scope=scope, criterion=criterion)
    batches = () if calibration is None else calibration
    norms = gradients = None
    if needs == "norms":
        norms = input_norms(model, weights, batches)
    elif needs == "gradients":
        gradients = mean_gradients(model, weights, batches, loss)
    parts = [weights]
    if asked.each_alone:
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
    return Masked(finish(model, plan, in_place=in_place), plan, weights.left_out)
