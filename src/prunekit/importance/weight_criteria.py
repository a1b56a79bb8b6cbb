"""How much each single weight matters: formulas over one tensor, and the closed table of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.errors import CalibrationError, SelectionError, ShapeError
from prunekit.importance.view import check_seed
from prunekit.importance.weight_tensors import Weights, WeightTensor, read_weight

WeightScores = Mapping[str, Tensor]
"""Scores by the name of the parameter, in its shape; finite, higher = keep."""


@dataclass(frozen=True)
class WeightView:
    """One parameter, and everything a criterion may know about it.

    Attributes:
        weight: which parameter.
        values: its values, in its shape.
        norms: Euclidean norm of each of its inputs, or None.
        gradient: of the loss, in its shape, or None.
        seed: for criteria that draw.
    """

    weight: WeightTensor
    values: Tensor
    norms: Tensor | None
    gradient: Tensor | None
    seed: int


def score_magnitude(view: WeightView) -> Tensor:
    """Score each weight by its magnitude.

    ``score[i] = |w[i]|``; ``l1`` in :data:`WEIGHT_CRITERIA` is another name for ``magnitude``.

    Returns:
        In the shape and dtype of the parameter, >= 0.

    Source: Han et al., 2015, Learning both Weights and Connections, section 3,
        https://arxiv.org/abs/1506.02626.
    Deviation: none.
    """
    return view.values.abs()


def score_draw(view: WeightView) -> Tensor:
    """Score each weight by a draw that knows nothing about it.

    ``score[i] = 1 - u[i]``, ``u`` uniform in ``[0, 1)`` from torch's CPU generator, seeded by
    :func:`seed_of`; so the scores of a parameter depend neither on the others nor on the device.

    Returns:
        In the shape of the parameter, float32 in ``(0, 1]``.

    Source: Mittal et al., 2018, Recovering from Random Pruning, https://arxiv.org/abs/1801.10447; ``1 - u``
    because ``torch.nn.utils.prune.random_unstructured`` removes the largest draws. Deviation: none.
    """
    generator = torch.Generator().manual_seed(seed_of(view.weight.name, view.seed))
    drawn = torch.rand(view.weight.shape, generator=generator, dtype=torch.float32)
    return drawn.neg_().add_(1.0).to(view.values.device)


def seed_of(name: str, seed: int) -> int:
    """The seed of one parameter's draws, from the user's seed and the parameter's name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def score_lamp(view: WeightView) -> Tensor:
    """Score each weight by its share of the squares of the weights that are no smaller.

    :func:`lamp` of the weights' magnitudes; ranked over the whole model it is a layer-adaptive sparsity.

    Returns:
        In the shape of the parameter, float64 in ``[0, 1]``; the largest weight of a parameter has 1.

    Source: as :func:`lamp`.
    """
    return lamp(view.values)


def lamp(values: Tensor) -> Tensor:
    """Divide each square by the sum of those that come no later when the largest is first.

    ``score[u] = w[u] ** 2 / sum_{v: |w[v]| >= |w[u]|} w[v] ** 2``

    Of equal values the one with the lower flat index comes first. Needs a sort, since every weight has its
    own sum; memory is about 32 bytes for each weight of the largest parameter.

    Args:
        values: weights, or any scores in their place; any shape and float dtype.

    Returns:
        The same shape, float64 in ``[0, 1]``; 0 where the value is 0.

    Source: Lee et al., 2021, Layer-adaptive Sparsity for the Magnitude-based Pruning, eq. 1,
    https://arxiv.org/abs/2010.07611. Deviation: none.
    """
    descending, order = values.flatten().abs().sort(descending=True, stable=True)
    squares = descending.double().square_()
    sums = squares.cumsum(0)
    shares = torch.where(squares > 0, squares / sums, 0.0)
    return torch.empty_like(shares).scatter_(0, order, shares).reshape(values.shape)


def score_wanda(view: WeightView) -> Tensor:
    """Score each weight by its magnitude times the norm of the input it reads.

    ``score[i, j] = |W[i, j]| * ||X_j||_2``

    Args:
        view: with ``norms`` ``[in]``, or ``[columns]`` of :attr:`WeightTensor.matrix_shape`; for a
            convolution one norm for each input channel serves every position of its kernel, and a grouped one
            has the norms of all its input channels.

    Returns:
        In the shape of the parameter, float32 (float64 for float64), >= 0.

    Raises:
        ShapeError: another number of norms.
        SelectionError: the parameter's inputs are not known.

    Source: Sun et al., 2024, A Simple and Effective Pruning Approach for Large Language Models, eq. 1,
    https://arxiv.org/abs/2306.11695, which compares within each output: ``scope="row"``. Deviation:
    convolutions, which the paper does not treat; edges and strides are not told apart.
    """
    assert view.norms is not None
    weight, norms = view.weight, view.norms.to(view.values.device)
    matrix, (rows, columns) = weight.laid_out(), weight.matrix_shape
    inputs = weight.shape[matrix.columns[-1]]
    magnitudes = _widened(weight.to_matrix(view.values)).abs()
    norms = norms.flatten().to(magnitudes.dtype)
    if norms.numel() == columns and matrix.groups == 1:
        return weight.from_matrix(magnitudes * norms)
    if norms.numel() != inputs * matrix.groups:
        raise ShapeError(
            f"There are {norms.numel()} input norms",
            expected=f"{inputs * matrix.groups}, one for each input",
            where=f"norms of '{weight.name}'",
        )
    of_each_row = norms.reshape(matrix.groups, 1, 1, inputs)
    scored = magnitudes.reshape(matrix.groups, rows // matrix.groups, columns // inputs, inputs) * of_each_row
    return weight.from_matrix(scored.reshape(rows, columns))


def score_first_order(view: WeightView) -> Tensor:
    """Score each weight by the first-order change of the loss when it becomes zero.

    ``score[i] = |gradient[i] * w[i]|``

    Returns:
        In the shape of the parameter, float32 (float64 for float64), >= 0, in units of the loss.

    Source: Molchanov et al., 2019, Importance Estimation for Neural Network Pruning, eq. 8 before it is
    squared, https://arxiv.org/abs/1906.10771, and Lee et al., 2019, SNIP,
    https://arxiv.org/abs/1810.02340. Deviations: the magnitude in place of the square; not divided by the sum
    over all weights as in SNIP (neither changes an order); with the gradient of :func:`mean_gradients` the
    average over the data is taken before the magnitude, where Molchanov et al. average squares.
    """
    assert view.gradient is not None
    return (_widened(view.values) * _widened(view.gradient)).abs_()


@dataclass(frozen=True)
class WeightCriterion:
    """One way to tell how much a single weight matters.

    Laws, tested for every row of :data:`WEIGHT_CRITERIA`: scores are finite and >= 0, higher = keep; the
    model is only read; the same inputs give the same scores; a parameter's scores do not depend on which
    others are scored.

    Attributes:
        name: its key in :data:`WEIGHT_CRITERIA`.
        needs: ``norms`` or ``gradients``, or "" where the weights are enough.
        formula: one parameter's scores.
        power: ``p`` in ``(mean_i score[i] ** p) ** (1 / p)``, the score of a block or row.
        summary: one line for tables and reports.
        source: where the formula comes from.
        scope: a key of :data:`prunekit.plan.WEIGHT_SCOPES`: what the source compares with each other.
    """

    name: str
    needs: str
    formula: Callable[[WeightView], Tensor]
    power: float
    summary: str
    source: str
    scope: str = "tensor"


WEIGHT_CRITERIA: dict[str, WeightCriterion] = {
    criterion.name: criterion
    for criterion in (
        WeightCriterion(
            "magnitude",
            "",
            score_magnitude,
            1.0,
            "magnitude",
            "Han et al., 2015, https://arxiv.org/abs/1506.02626",
        ),
        WeightCriterion(
            "l1",
            "",
            score_magnitude,
            1.0,
            "magnitude; of a piece the mean",
            "Li et al., 2017, https://arxiv.org/abs/1608.08710",
        ),
        WeightCriterion(
            "l2",
            "",
            score_magnitude,
            2.0,
            "magnitude; of a piece the root of the mean square",
            "He et al., 2018, https://arxiv.org/abs/1808.06866",
        ),
        WeightCriterion(
            "linf",
            "",
            score_magnitude,
            math.inf,
            "magnitude; of a piece the largest",
            "He et al., 2018, https://arxiv.org/abs/1808.06866",
        ),
        WeightCriterion(
            "lamp",
            "",
            score_lamp,
            1.0,
            "share of the squares of the weights that are no smaller",
            "Lee et al., 2021, https://arxiv.org/abs/2010.07611",
            scope="global",
        ),
        WeightCriterion(
            "wanda",
            "norms",
            score_wanda,
            1.0,
            "magnitude times the norm of the input",
            "Sun et al., 2024, https://arxiv.org/abs/2306.11695",
            scope="row",
        ),
        WeightCriterion(
            "taylor",
            "gradients",
            score_first_order,
            1.0,
            "first-order change of the loss",
            "Molchanov et al., 2019, https://arxiv.org/abs/1906.10771",
        ),
        WeightCriterion(
            "snip",
            "gradients",
            score_first_order,
            1.0,
            "first-order change of the loss: the order of taylor",
            "Lee et al., 2019, https://arxiv.org/abs/1810.02340",
        ),
        WeightCriterion(
            "random",
            "",
            score_draw,
            1.0,
            "a draw: the baseline",
            "Mittal et al., 2018, https://arxiv.org/abs/1801.10447",
        ),
    )
}
"""Every criterion for single weights by name."""


def score_weights(
    model: nn.Module,
    weights: Weights,
    criterion: str = "magnitude",
    *,
    norms: Mapping[str, Tensor] | None = None,
    gradients: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Score every weight of every parameter.

    Args:
        model: the model the weights were found on; only read.
        weights: from :func:`find_weights`.
        criterion: a key of :data:`WEIGHT_CRITERIA`.
        norms: for ``wanda``, by parameter: ``[in]``, from :func:`input_norms` or elsewhere.
        gradients: for ``taylor`` and ``snip``, by parameter, in its shape.
        seed: for ``random``; >= 0.

    Returns:
        By parameter, in its shape; finite, >= 0; higher = keep. Memory: one score for each weight, in the
        weights' dtype for magnitudes, in float64 for ``lamp``, else in float32.

    Raises:
        SelectionError: an unknown criterion, a seed that is none, inputs that are not known.
        CalibrationError: a statistic is missing, or it, a parameter or a score holds NaN or infinity.
        ShapeError: a statistic of another shape, or weights that were found on another model.
    """
    chosen = weight_criterion(criterion)
    check_seed(seed)
    given = {"norms": norms or {}, "gradients": gradients or {}}.get(chosen.needs, {})
    scores: dict[str, Tensor] = {}
    with torch.no_grad():
        for weight in weights:
            values = _finite(read_weight(model, weight), weight, "parameter")
            statistic = _statistic(given, weight, chosen) if chosen.needs else None
            view = WeightView(
                weight,
                values,
                statistic if chosen.needs == "norms" else None,
                statistic if chosen.needs == "gradients" else None,
                seed,
            )
            scores[weight.name] = _finite(chosen.formula(view), weight, "score")
    return scores


def weight_criterion(name: str) -> WeightCriterion:
    """The criterion of that name.

    Raises:
        SelectionError: there is none.
    """
    if not isinstance(name, str) or name not in WEIGHT_CRITERIA:
        raise SelectionError(
            f"There is no criterion {name!r} for single weights",
            expected=f"one of {', '.join(WEIGHT_CRITERIA)}",
            where="criterion",
        )
    return WEIGHT_CRITERIA[name]


def _statistic(given: Mapping[str, Tensor], weight: WeightTensor, criterion: WeightCriterion) -> Tensor:
    found = next((given[place] for place in weight.places if place in given), None)
    where = f"{criterion.needs} of '{weight.name}'"
    if found is None:
        raise CalibrationError(
            f"The criterion '{criterion.name}' needs {criterion.needs}, and there are none",
            where=where,
            remedy=f"Give score_weights(..., {criterion.needs}={{'{weight.name}': tensor, ...}}), or leave "
            "the parameter out with ignore=",
        )
    if criterion.needs == "gradients" and tuple(found.shape) != weight.shape:
        raise ShapeError(
            f"The gradient has the shape {list(found.shape)}", expected=str(list(weight.shape)), where=where
        )
    return _finite(found.detach(), weight, criterion.needs)


def _finite(values: Tensor, weight: WeightTensor, what: str) -> Tensor:
    if values.is_meta:
        raise CalibrationError(
            "The parameter has no values: it is on the meta device",
            where=weight.name,
            remedy="Load the weights first",
        )
    if not torch.isfinite(values).all():
        raise CalibrationError(
            f"The {what} holds NaN or infinity",
            where=weight.name,
            remedy="Look for a division by zero or an overflow, or calculate in float32",
        )
    return values


def _widened(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
