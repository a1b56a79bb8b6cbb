"""What is said where goals are not reached: which of them, how near a plan comes, and what is in the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunekit.errors import GoalError
from prunekit.measure import Interval
from prunekit.plan import Goal
from prunekit.targeting.goal_figures import GoalFigures
from prunekit.targeting.limiting import shares
from prunekit.targeting.together import Beyond
from prunekit.types import IntArray

COUNTED = {
    "quality_drop": "loss",
    "params": "parameters",
    "macs": "MACs",
    "kv_cache_bytes": "cached bytes",
    "size_bytes": "bytes",
    "memory_bytes": "bytes of parameters",
}
"""What a goal is counted in; of all other kinds milliseconds."""

NAMED = 5
"""At most so many groups are named."""

LAST = 3
"""At most so many attempts are told."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What one plan measured.

    Attributes:
        levels: of the plan.
        figures: by goal.
        intervals: by goal of a time.
    """

    levels: IntArray
    figures: Mapping[str, float]
    intervals: Mapping[str, Interval]

    def told(self, goal: Goal) -> str:
        """The figure of a goal, with its interval where it has one."""
        found, figure = self.intervals.get(str(goal)), f"{self.figures[str(goal)]:,.4g}"
        if found is None:
            return figure
        high = f"{found.high:,.4g}" if math.isfinite(found.high) else "no upper end"
        return f"{figure} ({found.confidence:.0%} interval {found.low:,.4g} to {high})"


@dataclass(frozen=True, eq=False)
class Asked:
    """What was asked, and what is known of it by now.

    Attributes:
        goals: one or several.
        figures: of the model on its target, as the attempts corrected them.
        correction: by goal, how many times its prediction the figure measured.
    """

    goals: tuple[Goal, ...]
    figures: GoalFigures
    correction: Mapping[str, float]

    def __str__(self) -> str:
        return " and ".join(map(str, self.goals))

    def least_surplus(self, measured: Measured) -> float:
        """By what share a plan exceeds the goal that it is furthest from; below 0: misses it."""
        return min(self.figures.surplus(goal, measured.figures[str(goal)]) for goal in self.goals)

    def predicted(self, place: int, levels: IntArray) -> str:
        """What a goal asks about at these levels, corrected."""
        goal = self.goals[place]
        return f"{self.figures.corrected(goal, levels, self.correction[str(goal)]):,.4g}"


def out_of_reach(asked: Asked, beyond: Beyond, nearest: Measured) -> GoalError:
    """Say which goals no plan meets, alone or together, and how near the nearest plan comes.

    Args:
        asked: goals that no plan meets.
        beyond: why not; its places are those of the goals.
        nearest: the plan that came nearest.
    """
    why = _alone(asked, beyond, nearest) if beyond.alone else _together(asked, beyond)
    return GoalError(
        f"{why}. Nearest to what was asked came a plan that measured {_misses(asked, nearest)}. "
        + _in_the_way(asked, beyond, nearest.levels),
        expected="a goal within that" if len(asked.goals) == 1 else "goals that one plan can meet",
        where="goal",
        remedy="Ask for less, loosen max_sparsity or min_units, or let more kinds of units go "
        "(granularity: layers, hidden)",
        nearest=nearest.figures,
    )


def _alone(asked: Asked, beyond: Beyond, nearest: Measured) -> str:
    best = []
    for place in beyond.alone:
        goal, least = asked.goals[place], beyond.least[place]
        found = (
            f"{nearest.figures[str(goal)]:,.4g}, measured"
            if (least == nearest.levels).all()
            else f"{asked.predicted(place, least)}, as predicted"
        )
        best.append(f"{goal}: the best is {found}")
    goals = " and ".join(str(asked.goals[place]) for place in beyond.alone)
    whatever = ", whatever becomes of the others" if len(best) < len(asked.goals) else ""
    return f"The goal {goals} is out of reach{whatever}: {'; '.join(best)}"


def _together(asked: Asked, beyond: Beyond) -> str:
    goals = [str(asked.goals[place]) for place in beyond.together]
    best = []
    for place in beyond.together:
        alone = asked.predicted(place, beyond.least[place])
        beside = beyond.beside.get(place)
        kept = "" if beside is None else f", and {asked.predicted(place, beside)} with the others kept"
        best.append(f"for {asked.goals[place]}: {alone} alone{kept}")
    return (
        f"The goals {' and '.join(goals)} are out of reach together, though each can be met without the "
        f"others. The best that is predicted is {'; '.join(best)}"
    )


def _misses(asked: Asked, nearest: Measured) -> str:
    """What was measured of each goal, and by how much that misses it."""
    told = []
    for goal in asked.goals:
        surplus = asked.figures.surplus(goal, nearest.figures[str(goal)])
        how = f"missed by {-surplus:,.1%}" if surplus < -goal.tolerance else "met"
        told.append(f"{nearest.told(goal)} for {goal} ({how})")
    return ", ".join(told)


def _in_the_way(asked: Asked, beyond: Beyond, levels: IntArray) -> str:
    """The groups that most of what is out of reach depends on at these levels, figure by figure."""
    told, figures = [], asked.figures
    for place in beyond.alone or beyond.together:
        goal = asked.goals[place]
        found, rest = shares(figures.figure(goal), figures.costs.levers, levels)
        named = [f"'{name}' ({share:.0%})" for name, share in found[:NAMED]]
        counted = COUNTED.get(goal.kind, "milliseconds")
        told.append(f"Its {counted}: {', '.join(named)}, and what no group changes ({rest:.0%})")
    return ". ".join(dict.fromkeys(told))


def no_plan(asked: Asked, allocation: str) -> GoalError:
    """Say that a baseline has no plan to try."""
    return GoalError(
        f"No plan of the allocation {allocation!r} should meet {asked}",
        expected="a goal that its steps come to",
        where="allocation",
        remedy="Ask for less, or let the knapsack choose",
    )


def not_met(asked: Asked, measured: Sequence[Measured]) -> GoalError:
    """Say what the attempts measured, of which none met the goals.

    Args:
        asked: the goals.
        measured: each attempt.
    """
    history = "; ".join(
        ", ".join(f"{goal}: {each.told(goal)}" for goal in asked.goals) for each in measured[-LAST:]
    )
    return GoalError(
        f"No plan met the goal within its tolerance in {len(measured)} attempts; the last gave {history}",
        expected=f"a figure within {min(goal.tolerance for goal in asked.goals):.1%} of what was asked",
        where="goal",
        remedy="Raise the tolerance, or give the groups more widths to choose from: Space(most_levels=)",
        nearest=max(measured, key=asked.least_surplus).figures,
    )
