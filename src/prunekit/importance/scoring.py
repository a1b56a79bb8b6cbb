"""From a criterion's rows to one comparable score per unit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np
import numpy.typing as npt
from torch import nn

from prunekit.errors import SelectionError
from prunekit.importance.criteria import CRITERIA, Criterion
from prunekit.importance.view import ROLES, GroupView, ModelTensors, Rows, Statistics, check_roles, check_seed
from prunekit.ranks import resharded
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


def _gaussian(scores: _PerUnit) -> _PerUnit:
    spread = float(scores.std())
    return np.logaddexp(0.0, (scores - scores.mean()) / spread) if spread else scores


NORMALIZATIONS: dict[str, Callable[[_PerUnit], _PerUnit]] = {
    "mean": lambda scores: scores / (float(scores.mean()) or 1.0),
    "max": lambda scores: scores / (float(scores.max()) or 1.0),
    "l2": lambda scores: scores / (float(np.linalg.norm(scores)) or 1.0),
    "gaussian": _gaussian,
    "none": lambda scores: scores,
}
"""What becomes of the scores of a group; none of them changes an order inside it."""


def score(
    model: nn.Module,
    groups: Iterable[Group],
    criterion: str = "l2",
    *,
    stats: Statistics | None = None,
    roles: Collection[str] = ROLES,
    reduction: str = "mean",
    normalization: str = "mean",
    fallback: str | None = None,
    seed: int = 0,
) -> dict[str, FloatArray]:
    """Score every unit of every group.

    ``score = normalise(reduce_slices(formula(slice)))`` per group; a group whose scores are all zero stays
    zero.

    Within a group the normalisation changes no order; it decides how groups compare in a global ranking.
    ``"mean"`` makes a score read "so many times the average unit of its group". That removes what differs
    between groups for reasons of shape alone (fan-in, number of slices, position of a normalisation layer)
    and lets a global ranking take most from the groups whose importance is spread least evenly. ``"max"``
    does the same against the best unit, and so follows outliers; ``"l2"`` divides by the Euclidean norm of
    the group's scores, so that units of wide groups count less. ``"gaussian"`` compares units by how many
    standard deviations they lie from the mean of their group: ``log(1 + exp((s - mean) / std))``, which is
    the standardised score made positive without changing any order, in or across groups. ``"none"`` is for
    scores that share a unit across groups by themselves, as the loss of ``"taylor"`` does.

    A criterion may say nothing about a group: ``"bn_scale"`` where no batch norm runs along it, ``"reap"``
    where its units are no experts. That is an error that names the groups, unless ``fallback`` names a
    criterion to score these groups with.

    Of a model that FSDP2 shards, one parameter at a time is gathered, on all processes, which all call this.

    Args:
        model: the model the groups were found on; only read.
        groups: the groups to score.
        criterion: a key of :data:`CRITERIA`.
        stats: what :func:`collect` gathered, for criteria that need it.
        roles: the roles of the slices that take part; buffers and integer parameters never do.
        reduction: ``"sum"``, ``"mean"`` or ``"max"`` over the slices of a unit, or over the operators that
            read it where the criterion looks at activations; the producers alone with ``roles``.
        normalization: ``"mean"``, ``"max"``, ``"l2"``, ``"gaussian"`` or ``"none"`` per group.
        fallback: a key of :data:`CRITERIA` for groups that ``criterion`` says nothing about.
        seed: for ``"random"``; >= 0.

    Returns:
        By group name ``[units]`` float32, finite, >= 0; higher = keep.

    Raises:
        SelectionError: an unknown name, a group without a float parameter in these roles, or one that neither
            the criterion nor the fallback says anything about.
        CalibrationError: a statistic is missing, or a parameter holds NaN or infinity.
        ShapeError: the groups were found on another model.

    Source: sum over all slices of a group and division by the group's mean: Fang et al., 2023, DepGraph,
    https://arxiv.org/abs/2301.12900, and the need to compare like with like: Fang et al., 2024, Isomorphic
    Pruning, https://arxiv.org/abs/2407.04616. Unnormalised first-order scores across layers: Molchanov et
    al., 2019, https://arxiv.org/abs/1906.10771. Deviation: the mean over slices is the default in place of
    the sum; divided by the group's mean both are the same wherever every unit has part in every slice.
    """
    reduce = REDUCTIONS[_known(reduction, REDUCTIONS, "reduction")]
    normalise = NORMALIZATIONS[_known(normalization, NORMALIZATIONS, "normalization")]
    taking_part = check_roles(roles)
    check_seed(seed)
    tensors = ModelTensors(model)
    resharded(model)
    views = [GroupView(group, tensors, taking_part, stats, seed) for group in groups]
    chosen = _choose(views, criterion, fallback)
    scores: dict[str, FloatArray] = {}
    for view in views:
        per_unit = reduce(chosen[view.group.name].rows(view))
        scores[view.group.name] = normalise(per_unit).astype(np.float32)
    return scores


def needs_of(*criteria: str | None) -> frozenset[str]:
    """Return the calibration statistics that scoring by these criteria reads; None stands for no criterion.

    Raises:
        SelectionError: an unknown name.
    """
    names = [_known(name, CRITERIA, "criterion") for name in criteria if name is not None]
    return frozenset().union(*(CRITERIA[name].needs for name in names))


def check_fit(model: nn.Module, groups: Iterable[Group], criterion: str, fallback: str | None = None) -> None:
    """Refuse, before any calibration, groups that neither criterion says anything about.

    Raises:
        SelectionError: an unknown name, or such groups, which it names.
    """
    tensors = ModelTensors(model)
    _choose([GroupView(group, tensors, ROLES, None, 0) for group in groups], criterion, fallback)


def _choose(views: list[GroupView], criterion: str, fallback: str | None) -> dict[str, Criterion]:
    """The criterion that scores each group."""
    names = [criterion] if fallback is None else [criterion, fallback]
    candidates = [CRITERIA[_known(name, CRITERIA, "criterion")] for name in names]
    chosen: dict[str, Criterion] = {}
    refused: list[tuple[str, str]] = []
    for view in views:
        reasons = [candidate.unfit(view) for candidate in candidates]
        fitting = [c for c, reason in zip(candidates, reasons, strict=True) if not reason]
        if fitting:
            chosen[view.group.name] = fitting[0]
        else:
            refused.append((view.group.name, reasons[0]))
    if refused:
        named = ", ".join(f"'{name}'" for name, _ in refused[:_NAMED])
        more = f" and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
        raise SelectionError(
            f"The criterion '{criterion}' says nothing about the groups {named}{more}: {refused[0][1]}",
            expected="groups that it applies to",
            where="criterion",
            remedy="Leave them out with ignore= or only=, or let another criterion score them: fallback='l2'",
        )
    return chosen


_NAMED = 5


def _known(name: str, table: Mapping[str, object], where: str) -> str:
    if not isinstance(name, str) or name not in table:
        raise SelectionError(f"There is no {where} '{name}'", expected=f"one of {list(table)}", where=where)
    return name
