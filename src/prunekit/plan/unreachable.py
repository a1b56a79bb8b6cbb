"""Saying why a goal cannot be reached, how near it comes and which groups stand in the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prunekit.errors import GoalError
from prunekit.plan.goal import KINDS, Goal
from prunekit.plan.leeway import BOUND
from prunekit.plan.limits import UNLIMITED, Limits, allowed_counts
from prunekit.plan.path import Path, uniform_levels
from prunekit.plan.solve import Point
from prunekit.types import Group, IntArray

NAMED = 5
"""At most so many groups are named."""


def unreachable(
    goal: Goal, scope: str, path: Path, held: Sequence[Limits], best: Point, before: int
) -> GoalError:
    """Say how near the goal comes and which groups stand in the way."""
    asked = goal.asked(before)
    if not path.groups:
        reason, remedy = (
            "No group is prunable",
            "Look at the frozen axes and their reasons (prunekit inspect)",
        )
    elif asked > before:
        reason, remedy = f"The model has only {before:,}", "Ask for less than the model has"
    elif best.left > asked and (best.levels == path.last_levels).all():
        reason = f"That is the least that the limits allow ({_held_most(path, held)}); the rest is frozen"
        remedy = "Ask for less, loosen the limits, or let more groups be pruned"
    else:
        widest = sorted(zip(path.groups, path.counts, strict=True), key=lambda pair: len(pair[1]))[:NAMED]
        names = ", ".join(f"'{group.name}' in {len(counts) - 1} steps" for group, counts in widest)
        reason = f"Single units are too coarse to come nearer ({names}) where {BOUND[scope]}"
        remedy = f"Raise the tolerance from {goal.tolerance:g}, lower round_to, or let more groups be pruned"
    counted = KINDS[goal.kind]
    figures = f"{asked:,} of {before:,} {counted} left. The nearest found leaves {best.left:,}"
    return GoalError(
        f"The goal is {goal}: {figures}. {reason}",
        expected=f"a figure within {goal.tolerance:g} of the asked one",
        where="goal",
        remedy=remedy,
    )


def nothing_goes(goal: Goal, path: Path, held: Sequence[Limits]) -> GoalError:
    """Say why a uniform sparsity removes no unit of any group, and what would remove one."""
    assert goal.remove is not None
    share = goal.remove
    widest = sorted(zip(path.groups, path.counts, held, strict=True), key=lambda one: -one[0].size)
    groups = "; ".join(_why_whole(*one, share) for one in widest[:NAMED])
    more = f"; and {len(widest) - NAMED} narrower groups" if len(widest) > NAMED else ""
    # half of the first step, as a share of the group: beyond it the step is taken
    needed = [float((c[0] - c[1]) / (2 * c[0])) for c in path.counts if len(c) > 1]
    remedies = [f"ask for a sparsity above {min(needed):.4g}"] if needed else []
    limiting = dict.fromkeys(
        name for group, counts, own in widest for name in _limiting(group, counts, own, share)
    )
    remedies += [f"loosen {' and '.join(limiting)}"] if limiting else []
    remedies += ["let groups with more units be pruned"]
    return GoalError(
        f"The goal is {goal}, and rounding to the nearest count that a group may keep removes nothing at "
        f"all: {groups}{more}",
        expected="a goal that removes a unit of at least one group",
        where="goal",
        remedy=", or ".join(remedies).capitalize(),
    )


def _why_whole(group: Group, counts: IntArray, limits: Limits, share: float) -> str:
    """What a group may keep, and which limit keeps it whole."""
    kept = [int(count) * group.blocks for count in counts]
    allowed = [str(count) for count in (kept if len(kept) <= 4 else [*kept[:3], "...", kept[-1]])]
    limiting = _limiting(group, counts, limits, share)
    if limiting:
        because = ", ".join(f"{name}={limits.said[name]:g}" for name in limiting)
    elif group.blocks > 1:
        because = f"the same number of units goes from each of its {group.blocks} blocks"
    else:
        because = "single units"
    return (
        f"'{group.name}' may keep {' or '.join(allowed)} of {group.size} ({because}), and {share:g} of it is "
        f"{share * group.size:.3g} units"
    )


def _limiting(group: Group, counts: IntArray, limits: Limits, share: float) -> list[str]:
    """The limits without which a group that stays whole would lose units; none if it is rounding alone."""

    def goes(relaxed: Limits) -> bool:
        return uniform_levels(allowed_counts(group, relaxed), share) > 0

    alone = [name for name in limits.said if goes(replace(limits, **{name: None}))]
    if alone:
        return alone
    return [name for name, value in limits.said.items() if value != 1] if goes(UNLIMITED) else []


def _held_most(path: Path, held: Sequence[Limits]) -> str:
    """The groups that keep most units at the end of the path, with their limits."""
    kept = [
        count * g.blocks for g, count in zip(path.groups, path.kept_per_block(path.last_levels), strict=True)
    ]
    most = sorted(zip(path.groups, kept, held, strict=True), key=lambda one: -one[1])[:NAMED]
    return "; ".join(
        f"'{group.name}' keeps {count} of {group.size}: {limits}" for group, count, limits in most
    )
