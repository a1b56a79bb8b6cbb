"""What an attempt at goals measured, and how goals were reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunekit.measure import Interval, LatencyComparison
from prunekit.measure.runtimes import NodeTime
from prunekit.plan import Goal, PruningPlan
from prunekit.plan.figures import Limit
from prunekit.plan.knapsack import By
from prunekit.targeting.costs import Costs
from prunekit.targeting.goal_figures import GoalFigures
from prunekit.targeting.measuring import tells
from prunekit.types import IntArray


@dataclass(frozen=True, eq=False)
class Attempt:
    """One plan that was carried out and measured.

    Attributes:
        levels: of the levers.
        by: what chose it: ``milp``, ``descent``, ``bracket`` or a baseline.
        predicted: by goal, as the model of cost saw it.
        measured: by goal.
        intervals: by goal of a time, what was measured with its interval.
        objective: the loss predicted; with a goal of ``quality_drop`` the milliseconds.
        comparison: beside the dense model.
        choosing_s: that choosing took.
        seconds: that the attempt took altogether.
        nodes: what the operators of its model took, where the runtime tells.
    """

    levels: IntArray
    by: By
    predicted: Mapping[str, float]
    measured: Mapping[str, float]
    intervals: Mapping[str, Interval]
    objective: float
    comparison: LatencyComparison
    choosing_s: float
    seconds: float
    nodes: tuple[NodeTime, ...] = ()

    def ends(self, goal: Goal) -> tuple[float, float]:
        """Between what a goal's figure lies; what is no time is known exactly."""
        name = str(goal)
        found = self.intervals.get(name)
        return (self.measured[name], self.measured[name]) if found is None else (found.low, found.high)


@dataclass(frozen=True, eq=False)
class Reached:
    """How goals were reached.

    Attributes:
        plan: what to remove.
        goals: what was asked.
        attempts: in order; the last is the plan's.
        overdone: every goal is more than met, and all nearer plans that were tried missed one.
        costs: as they are known after the attempts; None where they are not kept.
        limits: what the last choice was kept within, one for each goal; corrected by the attempts before.
    """

    plan: PruningPlan
    goals: tuple[Goal, ...]
    attempts: tuple[Attempt, ...]
    overdone: bool = False
    costs: Costs | None = None
    limits: tuple[Limit, ...] = ()

    @property
    def measured(self) -> Mapping[str, float]:
        """What was measured, by goal."""
        return self.attempts[-1].measured

    @property
    def comparison(self) -> LatencyComparison:
        """The plan's model beside the dense one."""
        return self.attempts[-1].comparison


def surpluses(attempt: Attempt, goals: Sequence[Goal], figures: GoalFigures) -> list[float] | None:
    """By how much each goal is more than met; None where one is missed by more than its tolerance."""
    found = [figures.surplus(goal, attempt.measured[str(goal)]) for goal in goals]
    missed = any(surplus < -goal.tolerance for surplus, goal in zip(found, goals, strict=True))
    return None if missed else found


def is_met(attempt: Attempt, goals: Sequence[Goal], figures: GoalFigures) -> bool:
    """Every goal is met but for its tolerance, and one of them is not overdone beyond it."""
    found = surpluses(attempt, goals, figures)
    if found is None:
        return False
    near = any(surplus <= goal.tolerance for surplus, goal in zip(found, goals, strict=True))
    return near or not attempt.levels.any() or any(goal.kind == "quality_drop" for goal in goals)


def may_be_met(attempt: Attempt, goals: Sequence[Goal], figures: GoalFigures) -> bool:
    """The same, or it cannot be told: what is not known to its tolerance may lie where it should."""
    met = is_met(attempt, goals, figures)
    if met or tells(attempt.comparison, goals):
        return met
    ends = [sorted(figures.surplus(goal, end) for end in attempt.ends(goal)) for goal in goals]
    missed = any(most < -goal.tolerance for (_, most), goal in zip(ends, goals, strict=True))
    near = any(least <= goal.tolerance for (least, _), goal in zip(ends, goals, strict=True))
    return near and not missed
