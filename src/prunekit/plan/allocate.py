"""Deciding which units go, so that the goal is reached exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, Unpack

import numpy as np

from prunekit.errors import GoalError, SelectionError
from prunekit.plan.goal import GOAL_KINDS, Goal, GoalKind, MeasuredKind
from prunekit.plan.leeway import BOUND
from prunekit.plan.limits import UNLIMITED, Limits, LimitValues, allowed_counts, limits_by_group
from prunekit.plan.nesting import (
    Nesting,
    find_nesting,
    without_lost_blocks,
    without_what_goes_whole,
)
from prunekit.plan.path import Path, global_path, uniform_levels, uniform_path
from prunekit.plan.pruning_plan import PruningPlan
from prunekit.plan.select import keep_mask, keep_order, scores_of
from prunekit.plan.solve import Point, solve
from prunekit.plan.unreachable import nothing_goes, unreachable
from prunekit.types import BoolArray, Cost, Group, IntArray, KeepMask, Scores

GLOBAL_MAX_SPARSITY = 0.9

HOW: dict[tuple[str, str], str] = {
    ("sparsity", "uniform"): (
        "every group, and every block of it, loses that fraction of its units, rounded to the nearest "
        "allowed count, an exact half kept: 0.5 of 7 units removes 3; a limit of a group comes first; if no "
        "group at all loses a unit that way, the goal is refused"
    ),
    ("sparsity", "global"): "that fraction of the units of all groups together goes, the lowest scores "
    f"first; {BOUND['global']}",
    ("macs", "uniform"): "the share taken from every group is raised, one unit of one group at a time, until "
    f"the exact figure of the whole model is the asked one; {BOUND['uniform']}",
    ("macs", "global"): "units go in the order of their scores until the exact figure is the asked one; "
    f"{BOUND['global']}",
}
"""What is done for a kind of goal and a scope; ``params`` as ``macs``."""


class PrunableGroups(Protocol):
    """What planning asks of :class:`prunekit.graph.Groups`."""

    @property
    def fingerprint(self) -> str:
        """Digest of what the groups were found on."""
        ...

    def __iter__(self) -> Iterator[Group]:
        """Iterate over the prunable groups."""
        ...

    def cost(self, keep: KeepMask | None = None) -> Cost:
        """Cost of the whole model once only ``keep`` is left."""
        ...


def allocate(
    groups: PrunableGroups,
    scores: Scores,
    goal: Goal,
    *,
    scope: Literal["uniform", "global"] = "uniform",
    criterion: str = "",
    limits: Limits | None = None,
    per_group: Mapping[str, Limits] | None = None,
    **plain: Unpack[LimitValues],
) -> PruningPlan:
    """Decide which units go.

    Scope ``uniform`` takes the same share of every group, ``global`` the lowest scores of all groups
    together. Inside a group the highest scores stay, of equal scores the lower unit ids, in equal numbers per
    block. How a goal is met is said in :data:`HOW`. Where a group lies inside another one (head dimensions
    inside heads), limits hold as if the outer group were whole; its units take blocks along.

    Args:
        groups: the groups that may be pruned, and their exact cost.
        scores: by group name ``[units]``, finite; higher = keep.
        goal: what is asked, and within what tolerance.
        scope: ``uniform`` or ``global``.
        criterion: what made the scores; only recorded.
        limits: what no group may be pruned beyond. Without a ``max_sparsity`` it is 1, and 0.9 for
            ``global``, where a ranking can empty a layer (Tanaka et al., 2020, arXiv:2006.05467).
        per_group: limits of the groups that match a shell-style pattern (as those of ``Groups.select``);
            they come before ``limits``, each limit by itself, and later patterns before earlier ones.
        **plain: the fields of ``limits`` one by one, in its place: ``round_to=8``.

    Raises:
        GoalError: no plan within the tolerance was found; says the best figure and what limits it. Or a
            uniform sparsity that rounds to nothing in every group.
        SelectionError: a limit outside its range, or in two places; a pattern that matches nothing, or asks
            for more units than a group has; an unknown scope.
        ShapeError: scores that do not fit the groups.
        CalibrationError: a score is NaN or infinite.

    Source: layerwise and global pruning: Blalock et al., 2020, What is the State of Neural Network Pruning?,
    https://arxiv.org/abs/2003.03033. Deviations: whole units in exact numbers, ties by unit id, and a figure
    of the whole model that is met within a tolerance.
    """
    if scope not in ("uniform", "global"):
        raise SelectionError(f"The scope is '{scope}'", expected="uniform or global", where="scope")
    if goal.is_measured:
        raise GoalError(
            f"The goal is {goal}, which only a target can measure",
            expected=f"one of {list(GOAL_KINDS)}",
            where="goal",
            remedy="Use measure_target(...).reach(goal), with the target that it is measured on",
        )
    ordered = tuple(groups)
    values = [scores_of(group, scores) for group in ordered]
    orders = [keep_order(value, group.blocks) for group, value in zip(ordered, values, strict=True)]
    default = Limits(max_sparsity=GLOBAL_MAX_SPARSITY) if scope == "global" else UNLIMITED
    held = limits_by_group(
        ordered, _limits_for_all(limits, plain).over(default), {} if per_group is None else per_group
    )
    counts = [allowed_counts(group, own) for group, own in zip(ordered, held, strict=True)]
    path = (
        uniform_path(ordered, counts) if scope == "uniform" else global_path(ordered, counts, orders, values)
    )
    choice = Choice(groups, path, orders, find_nesting(ordered), groups.cost())
    levels = _levels(choice, goal, scope, held)
    return PruningPlan(
        keep={name: tuple(np.flatnonzero(mask).tolist()) for name, mask in choice.masks(levels).items()},
        sizes={group.name: group.size for group in ordered},
        fingerprint=groups.fingerprint,
        criterion=criterion,
        goal=goal,
        scope=scope,
        before=choice.before,
        after=choice.cost(levels),
    )


@dataclass(frozen=True)
class Choice:
    """What there is to choose from: levels of the groups, and what they mean.

    Attributes:
        source: the groups with their exact cost.
        path: the steps in which the groups give up units.
        orders: for each group :func:`prunekit.plan.select.keep_order`.
        nesting: which groups lie inside which.
        before: the cost of the whole model.
    """

    source: PrunableGroups
    path: Path
    orders: list[IntArray]
    nesting: Nesting
    before: Cost

    def masks(self, levels: IntArray) -> dict[str, BoolArray]:
        """Masks of the groups that lose units, by themselves or with the group around them."""
        kept = self.path.kept_per_block(levels)
        masks = {
            group.name: keep_mask(order, count)
            for group, order, count in zip(self.path.groups, self.orders, kept, strict=True)
            if count < group.units_per_block
        }
        groups = {group.name: group for group in self.path.groups}
        return without_lost_blocks(without_what_goes_whole(masks, groups), groups, self.nesting)

    def cost(self, levels: IntArray) -> Cost:
        """Exact cost of the model at these levels."""
        masks = self.masks(levels)
        return self.source.cost(masks) if masks else self.before

    def figure(self, kind: GoalKind | MeasuredKind, levels: IntArray) -> int:
        """What a goal of this kind counts, at these levels."""
        if kind == "sparsity":
            masks = self.masks(levels)
            return sum(
                int(masks[group.name].sum()) if group.name in masks else group.size
                for group in self.path.groups
            )
        cost = self.cost(levels)
        return cost.macs if kind == "macs" else cost.params


def _levels(choice: Choice, goal: Goal, scope: str, held: Sequence[Limits]) -> IntArray:
    """How far each group goes, or an error that says why nothing fits."""
    path = choice.path
    nothing = path.levels(0)
    if goal.removes_nothing:
        return nothing
    before = choice.figure(goal.kind, nothing)
    share = goal.remove if goal.kind == "sparsity" and scope == "uniform" else None
    too_much = share is not None and all(
        own.max_sparsity is not None and share > own.max_sparsity for own in held
    )
    if not path.groups or too_much:
        least = Point(path.last_levels, choice.figure(goal.kind, path.last_levels))
        raise unreachable(goal, scope, path, held, least, before)
    if share is not None:
        levels = np.array([uniform_levels(counts, share) for counts in path.counts], dtype=np.int64)
        if not levels.any():
            raise nothing_goes(goal, path, held)
        return levels
    point = solve(path, partial(choice.figure, goal.kind), goal, goal.asked(before))
    if not goal.is_reached(point.left, goal.asked(before)):
        raise unreachable(goal, scope, path, held, point, before)
    return point.levels


def _limits_for_all(limits: Limits | None, plain: LimitValues) -> Limits:
    """The limits for all groups, given as one value or one by one."""
    if limits is None:
        return Limits(**plain)
    if plain or not isinstance(limits, Limits):
        given = f"limits and {', '.join(plain)}" if plain else f"limits={limits!r}"
        raise SelectionError(
            f"The limits are given as {given}",
            expected="Limits(min_units=..., max_sparsity=..., round_to=...), or its fields alone",
            where="limits",
        )
    return limits
