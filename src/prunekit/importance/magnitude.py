"""Criteria that look at the weights alone: norms of a unit's parameters, and distances."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from prunekit.importance.view import GroupView, Rows
from prunekit.types import BoolArray


def score_l1(weight: Tensor) -> Tensor:
    """Score each unit by the sum of the magnitudes of its parameters.

    ``score[u] = sum_i |weight[u, i]|``

    Args:
        weight: ``[units, k]``, any float dtype.

    Returns:
        ``[units]``, dtype of ``weight``, >= 0, in units of the weight; higher = keep.

    Source: Li et al., 2017, Pruning Filters for Efficient ConvNets, section 3.1,
    https://arxiv.org/abs/1608.08710. Deviation: none here; :func:`prunekit.importance.score` applies it to
    every slice of the group, not only to the producer.
    """
    return weight.abs().sum(dim=1)


def score_l2(weight: Tensor) -> Tensor:
    """Score each unit by the Euclidean norm of its parameters.

    ``score[u] = sqrt(sum_i weight[u, i] ** 2)``

    Args:
        weight: ``[units, k]``, any float dtype.

    Returns:
        ``[units]``, dtype of ``weight``, >= 0, in units of the weight; higher = keep.

    Source: He et al., 2018, Soft Filter Pruning, eq. 2 with p = 2, https://arxiv.org/abs/1808.06866; over all
    slices of a group: Fang et al., 2023, DepGraph, section 3.3, https://arxiv.org/abs/2301.12900.
    Deviation: none.
    """
    return weight.square().sum(dim=1).sqrt()


def score_linf(weight: Tensor) -> Tensor:
    """Score each unit by the largest magnitude among its parameters.

    ``score[u] = max_i |weight[u, i]|``

    Args:
        weight: ``[units, k]``, any float dtype.

    Returns:
        ``[units]``, dtype of ``weight``, >= 0, in units of the weight; higher = keep.

    Source: the limit of the norms in He et al., 2018, eq. 2, for p to infinity,
    https://arxiv.org/abs/1808.06866. Deviation: none.
    """
    return weight.abs().amax(dim=1)


def score_geometric_median(weight: Tensor) -> Tensor:
    """Score each unit by how far it lies from all others: the ones near their geometric median can go.

    ``score[u] = sum_v sqrt(sum_i (weight[u, i] - weight[v, i]) ** 2)``

    A unit that the others can stand in for scores low, however large its weights are. Time grows with the
    square of the number of units; memory with 256 times their number. Distances come from inner products, so
    two equal units may lie 1e-8 of their norm apart.

    Args:
        weight: ``[units, k]``, any float dtype.

    Returns:
        ``[units]``, dtype of ``weight``, >= 0, in units of the weight; higher = keep.

    Source: He et al., 2019, Filter Pruning via Geometric Median (FPGM), section 3.3 (the sum of
    distances, smallest for the units nearest to the geometric median), https://arxiv.org/abs/1811.00250.
    Deviation: none here; :func:`prunekit.importance.score` applies it to every slice of the group.
    """
    distances = [
        torch.cdist(part, weight, compute_mode="use_mm_for_euclid_dist").sum(dim=1)
        for part in weight.split(_ROWS_AT_ONCE)
    ]
    return torch.cat(distances)


_ROWS_AT_ONCE = 256


def score_lamp(weight: Tensor) -> Tensor:
    """Score each unit by its share of the squared weight that is left once all smaller units are gone.

    ``score[u] = size[u] / sum_{v: size[v] >= size[u]} size[v]``, ``size[u] = sum_i weight[u, i] ** 2``

    Inside a slice the order is that of L2; between groups the scores can be compared without normalisation
    (``normalization="none"``), because each says how much of its own layer a removal would change.

    Args:
        weight: ``[units, k]``, any float dtype.

    Returns:
        ``[units]``, dtype of ``weight``, in ``[0, 1]``; higher = keep. A slice of zeros scores zero.

    Source: Lee et al., 2021, Layer-adaptive Sparsity for the Magnitude-based Pruning, eq. 1,
    https://arxiv.org/abs/2010.07611. Deviations: units in place of weights, with the squared norm of the unit
    for the square of the weight; units of equal size share one score, where the paper ranks them by position.
    """
    size = weight.square().sum(dim=1)
    ascending, order = size.sort(stable=True)
    left = ascending.flip(0).cumsum(0).flip(0)  # of this unit and all larger ones
    first = torch.searchsorted(ascending, ascending)  # among equal units, the one that counts them all
    shares = torch.where(ascending > 0, ascending / left[first].clamp_min(_TINY), ascending)
    return torch.empty_like(size).scatter_(0, order, shares)


_TINY = torch.finfo(torch.float64).tiny


def per_slice(formula: Callable[[Tensor], Tensor]) -> Callable[[GroupView], Rows]:
    """Turn a formula over one slice's weights into a criterion with one row per slice.

    Units that have no part in a slice are left out of the formula, so that formulas that compare units with
    each other never see them.
    """

    def rows(view: GroupView) -> Rows:
        return np.stack([_row(formula, weight, present) for weight, present in view.slices()])

    return rows


def _row(formula: Callable[[Tensor], Tensor], weight: Tensor, present: BoolArray) -> Rows:
    row = np.full(len(present), np.nan)
    row[present] = formula(weight).cpu().numpy()
    return row
