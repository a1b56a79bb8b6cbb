"""From a criterion's rows to one comparable score per unit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np
import numpy.typing as npt
from torch import nn

from prunekit.errors import SelectionError
from prunekit.importance.criteria import CRITERIA
from prunekit.importance.view import ROLES, GroupView, Rows, Statistics, check_roles, check_seed
from prunekit.types import FloatArray, Group

_PerUnit = npt.NDArray[np.float64]


def _sum(rows: Rows) -> _PerUnit:
    return np.nansum(rows, axis=0)


def _mean(rows: Rows) -> _PerUnit:
    return _sum(rows) / np.maximum(np.count_nonzero(~np.isnan(rows), axis=0), 1)


def _max(rows: Rows) -> _PerUnit:
    return np.fmax.reduce(rows, axis=0, initial=0.0)


REDUCTIONS: dict[str, Callable[[Rows], _PerUnit]] = {"sum": _sum, "mean": _mean, "max": _max}
"""How the slices of a unit become one figure; a slice the unit has no part in does not count."""

NORMALIZATIONS: dict[str, Callable[[_PerUnit], float]] = {
    "mean": lambda scores: float(scores.mean()),
    "max": lambda scores: float(scores.max()),
    "none": lambda scores: 1.0,
}
"""What the scores of a group are divided by."""


def score(
    model: nn.Module,
    groups: Iterable[Group],
    criterion: str = "l2",
    *,
    stats: Statistics | None = None,
    roles: Collection[str] = ROLES,
    reduction: str = "mean",
    normalization: str = "mean",
    seed: int = 0,
) -> dict[str, FloatArray]:
    """Score every unit of every group.

    ``score[u] = reduce_slices(formula(slice)[u]) / normaliser(group)``; a group whose scores are all zero
    stays zero.

    Within a group the normalisation changes no order; it decides how groups compare in a global ranking.
    ``"mean"`` makes a score read "so many times the average unit of its group". That removes what differs
    between groups for reasons of shape alone (fan-in, number of slices, position of a normalisation layer)
    and lets a global ranking take most from the groups whose importance is spread least evenly. ``"max"``
    does the same against the best unit, and so follows outliers. ``"none"`` is for scores that share a unit
    across groups by themselves, as the loss of ``"taylor"`` does.

    Args:
        model: the model the groups were found on; only read.
        groups: the groups to score.
        criterion: a key of :data:`CRITERIA`.
        stats: what :func:`collect` gathered, for criteria that need it.
        roles: the roles of the slices that take part; buffers and integer parameters never do.
        reduction: ``"sum"``, ``"mean"`` or ``"max"`` over the slices of a unit.
        normalization: ``"mean"``, ``"max"`` or ``"none"`` per group.
        seed: for ``"random"``; >= 0.

    Returns:
        By group name ``[units]`` float32, finite, >= 0; higher = keep.

    Raises:
        SelectionError: an unknown name, or a group without a float parameter in these roles.
        CalibrationError: a statistic is missing, or a parameter holds NaN or infinity.
        ShapeError: the groups were found on another model.

    Source: sum over all slices of a group and division by the group's mean: Fang et al., 2023, DepGraph,
    https://arxiv.org/abs/2301.12900, and the need to compare like with like: Fang et al., 2024, Isomorphic
    Pruning, https://arxiv.org/abs/2407.04616. Unnormalised first-order scores across layers: Molchanov et
    al., 2019, https://arxiv.org/abs/1906.10771. Deviation: the mean over slices is the default in place of
    the sum; divided by the group's mean both are the same wherever every unit has part in every slice.
    """
    chosen = CRITERIA[_known(criterion, CRITERIA, "criterion")]
    reduce = REDUCTIONS[_known(reduction, REDUCTIONS, "reduction")]
    normaliser = NORMALIZATIONS[_known(normalization, NORMALIZATIONS, "normalization")]
    taking_part = check_roles(roles)
    check_seed(seed)
    scores: dict[str, FloatArray] = {}
    for group in groups:
        per_unit = reduce(chosen.rows(GroupView(group, model, taking_part, stats, seed)))
        scores[group.name] = (per_unit / (normaliser(per_unit) or 1.0)).astype(np.float32)
    return scores


def _known(name: str, table: Mapping[str, object], where: str) -> str:
    if not isinstance(name, str) or name not in table:
        raise SelectionError(f"There is no {where} '{name}'", expected=f"one of {list(table)}", where=where)
    return name
