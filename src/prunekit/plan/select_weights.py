"""``select_weights``: from scores to the plan which single weights stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from prunekit.errors import CalibrationError, SelectionError, ShapeError
from prunekit.importance import MASKABLE, Weights, WeightScores, WeightTensor, weight_criterion
from prunekit.plan.exact import keep_highest, keep_in_rows
from prunekit.plan.mask_plan import MaskPlan, PackedMask
from prunekit.plan.pattern import (
    Element,
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
        scope: a key of :data:`WEIGHT_SCOPES` or a value such as :class:`OutlierWeighted`; default the
            criterion's, ``tensor`` where that is unknown or ranks rows and the pattern is no single weight. A
            pattern n:m takes none: it has the same count everywhere.
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
    asked = check_selection(
        weights, sparsity=sparsity, pattern=pattern, scope=scope, criterion=criterion, power=power
    )
    return _plan(weights, choose_weights(weights, scores, asked), asked, criterion)


def choose_weights(weights: Weights, scores: WeightScores, asked: Asked) -> dict[str, Tensor]:
    """What :func:`select_weights` decides, as tensors on the device of the scores.

    Args:
        weights: from :func:`prunekit.importance.find_weights`.
        scores: as there.
        asked: from :func:`check_selection` for the same weights.

    Returns:
        By parameter, in its shape; bool, True = keep.

    Raises:
        ShapeError: scores of another shape.
        CalibrationError: scores with NaN or infinity.
        GoalError: a sparsity that a scope cannot reach.
    """
    _check_scores(weights, scores)
    wanted, pieces = asked.pattern, asked.pieces
    in_rows = ranks_rows(asked.scope)
    with torch.no_grad():
        if isinstance(wanted, NOfM):
            return {weight.name: _n_of_m(weight, scores[weight.name], wanted) for weight in weights}
        grid = {
            weight.name: score_pieces(
                as_grid(weight, scores[weight.name].detach(), wanted, in_rows),
                pieces[weight.name],
                asked.power,
            )
            for weight in weights
        }
        chosen = _choose(Pieces(weights, grid), asked.scope, asked.sparsity)
        return {
            weight.name: from_grid(weight, spread(chosen[weight.name], pieces[weight.name]), wanted, in_rows)
            for weight in weights
        }


@dataclass(frozen=True)
class Asked:
    """What is asked of a selection, checked against the weights.

    Attributes:
        pattern: in what pieces weights stay or go.
        scope: which pieces compete.
        scope_name: how that is written down.
        sparsity: the fraction removed.
        power: of the mean that makes the score of a piece.
        pieces: by parameter, rows and columns of a piece.
    """

    pattern: Pattern
    scope: Scope
    scope_name: str
    sparsity: float
    power: float
    pieces: Mapping[str, tuple[int, int]]

    @property
    def each_alone(self) -> bool:
        """No parameter competes with another."""
        return isinstance(self.pattern, NOfM) or self.scope_name in ("tensor", "row")


def check_selection(
    weights: Weights,
    *,
    sparsity: float | None = None,
    pattern: Pattern | str = "element",
    scope: Scope | str | None = None,
    criterion: str = "",
    power: float | None = None,
) -> Asked:
    """Refuse, before anything is scored, what :func:`select_weights` would refuse; arguments as there.

    Raises:
        SelectionError: an unknown pattern, scope or criterion, a sparsity that is none, no weights, inputs
            that are not known.
        ShapeError: a parameter that does not divide into pieces.
    """
    wanted = parse_pattern(pattern)
    mean = _power(power, criterion)
    if isinstance(wanted, NOfM) and scope is not None:
        raise pattern_alone(wanted)
    share = sparsity_of(sparsity, wanted)
    if not len(weights):
        raise SelectionError("There are no weights to select from", remedy="Look at only= and ignore=")
    if scope is None:
        scope = weight_criterion(criterion).scope if criterion else "tensor"
        scope = "tensor" if scope == "row" and not isinstance(wanted, Element) else scope
    name, chosen = parse_scope(scope)
    pieces = {weight.name: wanted.piece(weight) for weight in weights}
    if ranks_rows(chosen):
        for weight in weights:
            weight.laid_out()
    name = "n:m" if isinstance(wanted, NOfM) else name
    return Asked(wanted, chosen, name, share, mean, pieces)


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


def _plan(weights: Weights, kept: Mapping[str, Tensor], asked: Asked, criterion: str) -> MaskPlan:
    masks = {name: PackedMask.of(mask.cpu().contiguous().numpy()) for name, mask in kept.items()}
    return MaskPlan(
        masks, weights.fingerprint, str(asked.pattern), asked.scope_name, criterion, asked.sparsity
    )


def _power(given: float | None, criterion: str) -> float:
    if given is None:
        return weight_criterion(criterion).power if criterion else 1.0
    if isinstance(given, bool) or not isinstance(given, Real) or not given > 0:
        raise SelectionError(
            f"The power is {given!r}", expected="a number above 0, or infinity", where="power"
        )
    return float(given)


def _check_scores(weights: Weights, scores: WeightScores) -> None:
    for weight in weights:
        found = scores.get(weight.name)
        if found is None or tuple(found.shape) != weight.shape or found.dtype not in MASKABLE:
            given = "none" if found is None else f"{found.dtype} of the shape {list(found.shape)}"
            raise ShapeError(
                f"Its scores are {given}",
                expected=f"floats of 16 bits or more, of the shape {list(weight.shape)}",
                where=f"weight '{weight.name}'",
                remedy="Give the scores of score_weights() for the same weights",
            )
        if not torch.isfinite(found).all():
            raise CalibrationError("Its scores hold NaN or infinity", where=f"weight '{weight.name}'")
