"""``select_weights``: from scores to the plan which single weights stay."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunekit.errors import CalibrationError, SelectionError, ShapeError
from prunekit.importance import Weights, WeightScores, WeightTensor, weight_criterion
from prunekit.plan.exact import keep_highest, keep_in_rows
from prunekit.plan.mask_plan import MaskPlan, PackedMask
from prunekit.plan.pattern import (
    NOfM,
    Pattern,
    as_grid,
    from_grid,
    parse_pattern,
    pattern_alone,
    score_pieces,
    sparsity_of,
    spread,
)
from prunekit.plan.scope import Pieces, Scope, parse_scope, ranks_rows


def select_weights(
    weights: Weights,
    scores: WeightScores,
    *,
    sparsity: float | None = None,
    pattern: Pattern | str = "element",
    scope: Scope | str | None = None,
    criterion: str = "",
    power: float | None = None,
) -> MaskPlan:
    """Decide which weights stay; counts are exact, whatever the ties.

    Of equal scores those with the lower flat index stay (of pieces, those that come first in the parameter's
    matrix, row by row; among parameters, those that come first in ``weights``). Counts of pieces are rounded
    to the nearest, halves to even: for ``tensor``, ``module`` and ``global`` in each pool, for ``row`` in
    each row, else over all.

    Args:
        weights: from :func:`prunekit.importance.find_weights`.
        scores: by parameter, in its shape, finite; higher = keep.
        sparsity: the fraction removed, in ``[0, 1]``; a pattern n:m has its own.
        pattern: ``element``, ``2:4``, ``4x8``, ``row``, ``column``, or a value such as :class:`Block`.
        scope: a key of :data:`WEIGHT_SCOPES` or a value such as :class:`OutlierWeighted`; default ``tensor``.
            A pattern n:m takes none: it has the same count everywhere.
        criterion: what scored the weights, for the record.
        power: of the mean that makes the score of a piece (:func:`score_pieces`); default the criterion's, 1
            where that is unknown.

    Raises:
        SelectionError: an unknown pattern or scope, a sparsity that is none, no weights, inputs that are not
            known.
        ShapeError: a parameter that does not divide into pieces, or scores of another shape.
        CalibrationError: scores with NaN or infinity.
        GoalError: a sparsity that a scope cannot reach.
    """
    wanted = parse_pattern(pattern)
    name, chosen = parse_scope("tensor" if scope is None else scope)
    if isinstance(wanted, NOfM) and scope is not None:
        raise pattern_alone(wanted)
    asked = sparsity_of(sparsity, wanted)
    if not len(weights):
        raise SelectionError("There are no weights to select from", remedy="Look at only= and ignore=")
    pieces = {weight.name: wanted.piece(weight) for weight in weights}
    in_rows = ranks_rows(chosen)
    if in_rows:
        for weight in weights:
            weight.laid_out()
    mean = _power(power, criterion)
    _check_scores(weights, scores)
    with torch.no_grad():
        if isinstance(wanted, NOfM):
            kept = {weight.name: _n_of_m(weight, scores[weight.name], wanted) for weight in weights}
            return _plan(weights, kept, wanted, "n:m", criterion, asked)
        grid = {
            weight.name: score_pieces(
                as_grid(weight, scores[weight.name].detach(), wanted, in_rows),
                pieces[weight.name],
                mean,
            )
            for weight in weights
        }
        chosen_pieces = _choose(Pieces(weights, grid), chosen, asked)
        kept = {
            weight.name: from_grid(
                weight, spread(chosen_pieces[weight.name], pieces[weight.name]), wanted, in_rows
            )
            for weight in weights
        }
    return _plan(weights, kept, wanted, name, criterion, asked)


def _choose(pieces: Pieces, scope: Scope, sparsity: float) -> dict[str, Tensor]:
    """By parameter the pieces that stay, in the shape of their scores."""
    kept: dict[str, Tensor] = {}
    for pool in scope.pools(pieces, sparsity):
        if pool.in_rows:
            kept[pool.names[0]] = keep_in_rows(pieces.scores[pool.names[0]], pool.keep)
            continue
        masks = keep_highest([pieces.scores[name].flatten() for name in pool.names], pool.keep)
        for name, mask in zip(pool.names, masks, strict=True):
            kept[name] = mask.reshape(pieces.scores[name].shape)
    return kept


def _n_of_m(weight: WeightTensor, scores: Tensor, pattern: NOfM) -> Tensor:
    matrix = weight.to_matrix(scores.detach())
    kept = keep_in_rows(matrix.reshape(-1, pattern.m), pattern.n)
    return weight.from_matrix(kept.reshape(matrix.shape))


def _plan(
    weights: Weights,
    kept: Mapping[str, Tensor],
    pattern: Pattern,
    scope: str,
    criterion: str,
    asked: float,
) -> MaskPlan:
    masks = {name: PackedMask.of(mask.cpu().contiguous().numpy()) for name, mask in kept.items()}
    return MaskPlan(masks, weights.fingerprint, str(pattern), scope, criterion, asked)


def _power(given: float | None, criterion: str) -> float:
    if given is None:
        return weight_criterion(criterion).power if criterion else 1.0
    if isinstance(given, bool) or not isinstance(given, int | float) or not given > 0:
        raise SelectionError(
            f"The power is {given!r}", expected="a number above 0, or infinity", where="power"
        )
    return float(given)


def _check_scores(weights: Weights, scores: WeightScores) -> None:
    for weight in weights:
        found = scores.get(weight.name)
        if found is None or tuple(found.shape) != weight.shape or not found.is_floating_point():
            given = "none" if found is None else f"{found.dtype} of the shape {list(found.shape)}"
            raise ShapeError(
                f"Its scores are {given}",
                expected=f"floats of the shape {list(weight.shape)}",
                where=f"weight '{weight.name}'",
                remedy="Give the scores of score_weights() for the same weights",
            )
        if not torch.isfinite(found).all():
            raise CalibrationError("Its scores hold NaN or infinity", where=f"weight '{weight.name}'")
