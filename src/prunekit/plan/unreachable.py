"""Saying why a goal cannot be reached, how near it comes and which groups stand in the way."""

from __future__ import annotations

from prunekit.errors import GoalError
from prunekit.plan.goal import GOAL_KINDS, Goal
from prunekit.plan.path import Limits, Path
from prunekit.plan.solve import Point


def unreachable(goal: Goal, path: Path, limits: Limits, best: Point, before: int) -> GoalError:
    """Say how near the goal comes and which groups stand in the way."""
    asked = goal.asked(before)
    counted = GOAL_KINDS[goal.kind]
    kept = path.kept_per_block(best.levels)
    if not path.groups:
        reason, remedy = (
            "No group is prunable",
            "Look at the frozen axes and their reasons (prunekit inspect)",
        )
    elif asked > before:
        reason, remedy = f"The model has only {before:,}", "Ask for less than the model has"
    elif best.left > asked and (best.levels == path.last_levels).all():
        held = sorted(zip(path.groups, kept, strict=True), key=lambda pair: -pair[0].blocks * pair[1])[:5]
        names = ", ".join(
            f"'{group.name}' keeps {group.blocks * count} of {group.size}" for group, count in held
        )
        reason = (
            f"That is the least that min_units={limits.min_units}, max_sparsity={limits.max_sparsity:g} and "
            f"round_to={limits.round_to} allow ({names}); the rest of the model is frozen"
        )
        remedy = "Ask for less, loosen the limits, or let more groups be pruned"
    else:
        widest = sorted(zip(path.groups, path.counts, strict=True), key=lambda pair: len(pair[1]))[:5]
        names = ", ".join(f"'{group.name}' in {len(counts) - 1} steps" for group, counts in widest)
        reason = f"Single units are too coarse to come nearer ({names})"
        remedy = f"Raise the tolerance from {goal.tolerance:g}, lower round_to, or let more groups be pruned"
    figures = f"{asked:,} of {before:,} {counted} left. The nearest found leaves {best.left:,}"
    return GoalError(
        f"The goal is {goal}: {figures}. {reason}",
        expected=f"a figure within {goal.tolerance:g} of the asked one",
        where="goal",
        remedy=remedy,
    )
