"""Allocations by name: the knapsack, and the ways that it is compared with, all at the same limits."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from prunekit.errors import GoalError
from prunekit.plan.figures import Figure, Limit
from prunekit.plan.knapsack import Chosen, choose
from prunekit.plan.levers import Lever, Levers
from prunekit.plan.losses import structure_of
from prunekit.plan.moves import moved_back, moved_on
from prunekit.types import Scores

AllocationName = Literal["knapsack", "uniform", "global", "isomorphic", "greedy"]
Allocation = Callable[[Levers, Scores, Figure, Sequence[Limit]], Chosen | None]
"""From the levers, the scores they were ordered by, the losses of their levels and the limits."""

Vector = npt.NDArray[np.float64]


def allocate_uniform(
    levers: Levers, scores: Scores, losses: Figure, limits: Sequence[Limit]
) -> Chosen | None:
    """The same share of every group, as nearly as its levels allow; layers and branches stay.

    The share rises from 0; a lever takes its next level where the share passes the middle between the two.

    Source: layerwise pruning as a baseline: Blalock et al., 2020, What is the State of Neural Network
    Pruning?, https://arxiv.org/abs/2003.03033. Deviation: whole units, at the levels of the levers.
    """
    steps = [
        (
            float(2 * lever.kept[0] - lever.kept[level] - lever.kept[level + 1]) / (2 * float(lever.kept[0])),
            place,
        )
        for place, lever in enumerate(levers)
        if lever.unit is None
        for level in range(len(lever) - 1)
    ]
    return _first_that_fits("uniform", [place for _, place in sorted(steps)], levers, losses, limits)


def allocate_global(levers: Levers, scores: Scores, losses: Figure, limits: Sequence[Limit]) -> Chosen | None:
    """One ranking of everything by raw scores: the step goes first whose units have the least mean score.

    A layer or branch is one unit with its own score. Of equal scores the step goes first that leaves its
    group the larger share.

    Source: global pruning as a baseline: Blalock et al., 2020, as for :func:`allocate_uniform`; of channels
    by one threshold: Liu et al., 2017, Network Slimming, https://arxiv.org/abs/1708.06519. Deviations: units
    go level by level; any scores, not normalised.
    """
    return _first_that_fits("global", _ranked(levers, _mean_scores(levers, scores)), levers, losses, limits)


def allocate_isomorphic(
    levers: Levers, scores: Scores, losses: Figure, limits: Sequence[Limit]
) -> Chosen | None:
    """A ranking inside each structure, and the same share of every structure.

    Groups are of one structure where their units are of the same kind and touch tensors in the same roles
    (:func:`prunekit.plan.losses.structure_of`); layers and branches are structures of their own.

    Source: Fang et al., 2024, Isomorphic Pruning for Vision Models, section 3.3,
    https://arxiv.org/abs/2407.04616. Deviation: structures are read from the slices of a group instead of its
    graph, and units go level by level.
    """
    means = _mean_scores(levers, scores)
    pools: dict[Hashable, list[tuple[float, float, int, int, int]]] = {}
    for place, lever in enumerate(levers):
        for level, mean in enumerate(means[place].tolist()):
            gone = 1 - float(lever.kept[level + 1]) / float(lever.kept[0])
            units = _units(lever, level)
            pools.setdefault(structure_of(lever.group), []).append((mean, gone, place, level, units))
    shares = [np.zeros(len(mean)) for mean in means]
    for steps in pools.values():
        whole = sum(
            {levers[place].group.name: levers[place].group.size for _, _, place, _, _ in steps}.values()
        )
        removed = 0
        for _, _, place, level, units in sorted(steps):
            removed += units
            shares[place][level] = removed / whole
    return _first_that_fits("isomorphic", _ranked(levers, shares), levers, losses, limits)


def allocate_greedily(
    levers: Levers, scores: Scores, losses: Figure, limits: Sequence[Limit]
) -> Chosen | None:
    """The step of least loss for what it saves, again and again, until the limits are met.

    What the last steps saved too much is given back where it is worth most
    (:func:`prunekit.plan.moves.moved_back`).

    Source: the most gain for its cost at each step: Fox, 1966, Discrete Optimization via Marginal Analysis,
    https://doi.org/10.1287/mnsc.13.3.210. Deviations: costs are joint and curves need not be convex, so that
    nothing is guaranteed; a step may skip levels; several limits; steps back at the end.
    """
    sizes = [len(lever) for lever in levers]
    levels = moved_on(losses, limits, sizes, np.zeros(len(sizes), dtype=np.int64))
    if levels is None:
        return None
    levels = moved_back(losses, limits, sizes, levels)
    return Chosen(levels, losses.at(levels), "greedy", proven=False)


def allocate_by_knapsack(
    levers: Levers, scores: Scores, losses: Figure, limits: Sequence[Limit]
) -> Chosen | None:
    """The least loss there is: :func:`prunekit.plan.knapsack.choose`."""
    return choose(losses, limits, [len(lever) for lever in levers])


ALLOCATIONS: Mapping[AllocationName, Allocation] = {
    "knapsack": allocate_by_knapsack,
    "uniform": allocate_uniform,
    "global": allocate_global,
    "isomorphic": allocate_isomorphic,
    "greedy": allocate_greedily,
}
"""All of them. Each meets every limit, or gives None where it cannot."""

RANKING: frozenset[AllocationName] = frozenset({"global", "isomorphic"})
"""Those that rank by scores; the others do not read them."""


def check_scores(allocation: AllocationName, levers: Levers, scores: Scores | None) -> None:
    """Refuse an allocation that ranks by scores where there are none.

    Raises:
        GoalError: no scores, or none of a group that has a lever.
    """
    if allocation not in RANKING:
        return
    known = scores or {}
    missing = list(dict.fromkeys(lever.group.name for lever in levers if lever.group.name not in known))
    if missing:
        given = "no scores were" if scores is None else f"no scores of {missing[0]!r} were"
        raise GoalError(
            f"The allocation {allocation!r} ranks by scores, and {given} given",
            expected="scores of every group that has a lever, by its name",
            where="allocation",
            remedy="Give scores=prunekit.score(model, groups, criterion, normalization='none'), or let the "
            "knapsack choose",
        )


def _mean_scores(levers: Levers, scores: Scores) -> list[Vector]:
    """For each lever ``[levels - 1]``, the mean score of the units that go with each step; never falling."""
    found = []
    for lever in levers:
        own = np.array(scores[lever.group.name], dtype=np.float64)
        if lever.unit is not None:
            found.append(own[[lever.unit]])
            continue
        own[list(lever.group.pinned)] = np.inf
        by_place = own[lever.order].mean(axis=0)
        steps = [by_place[fewer:more].mean() for more, fewer in pairwise(lever.kept)]
        found.append(np.maximum.accumulate(np.array(steps)))
    return found


def _units(lever: Lever, level: int) -> int:
    """How many units go with the step from a level to the next."""
    return int(lever.kept[level] - lever.kept[level + 1]) * lever.group.blocks


def _ranked(levers: Levers, ranks: Sequence[Vector]) -> list[int]:
    """The levers in the order in which they take their next level, by the rank of that step."""
    steps = [
        (rank, 1 - float(lever.kept[level + 1]) / float(lever.kept[0]), place)
        for place, lever in enumerate(levers)
        for level, rank in enumerate(ranks[place].tolist())
    ]
    return [place for _, _, place in sorted(steps)]


def _first_that_fits(
    by: Literal["uniform", "global", "isomorphic"],
    order: Sequence[int],
    levers: Levers,
    losses: Figure,
    limits: Sequence[Limit],
) -> Chosen | None:
    """Take steps until all limits are met; then take back, the last one first, what was not needed.

    Every lever takes back one step at most, so that the plan stays what its order says, but for one level.
    """
    levels = np.zeros(len(levers), dtype=np.int64)
    taken: list[int] = []
    for place in order:
        if all(limit.is_met(levels) for limit in limits):
            break
        levels[place] += 1
        taken.append(place)
    if not all(limit.is_met(levels) for limit in limits):
        return None
    for place in dict.fromkeys(reversed(taken)):
        levels[place] -= 1
        if not all(limit.is_met(levels) for limit in limits):
            levels[place] += 1
    return Chosen(levels, losses.at(levels), by, proven=False)
