"""Criteria that look at the weights alone: the norms of a unit's parameters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from prunekit.importance.view import GroupView, Rows


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


def per_slice(formula: Callable[[Tensor], Tensor]) -> Callable[[GroupView], Rows]:
    """Turn a formula over one slice's weights into a criterion with one row per slice."""

    def rows(view: GroupView) -> Rows:
        return np.stack(
            [np.where(present, formula(weight).cpu().numpy(), np.nan) for weight, present in view.slices()]
        )

    return rows
