"""Reaching measured goals: choose, export, measure, correct, and choose again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from prunekit.errors import GoalError
from prunekit.graph import Groups
from prunekit.measure import LatencyComparison
from prunekit.plan import Goal, PruningPlan
from prunekit.plan.baselines import ALLOCATIONS, AllocationName, check_scores
from prunekit.plan.figures import Figure, Limit
from prunekit.plan.knapsack import SECONDS, By, Chosen, choose
from prunekit.surgery import reduced_graph
from prunekit.targeting.costs import Costs, tag
from prunekit.targeting.goal_figures import AT_LEAST, TIMED_KINDS, GoalFigures, check_goals
from prunekit.targeting.limiting import shares_of_time
from prunekit.targeting.measuring import check_steady, measure_beside
from prunekit.targeting.rig import Rig
from prunekit.types import IntArray, Scores

ATTEMPTS = 8
NAMED = 5


@dataclass(frozen=True, eq=False)
class Attempt:
    """One plan that was carried out and measured.

    Attributes:
        levels: of the levers.
        by: what chose it: ``milp``, ``descent`` or a baseline.
        predicted: by goal, as the model of cost saw it.
        measured: by goal.
        objective: the loss predicted; with a goal of ``quality_drop`` the milliseconds.
        comparison: beside the dense model.
        choosing_s: that choosing took.
        seconds: that the attempt took altogether.
    """

    levels: IntArray
    by: By
    predicted: Mapping[str, float]
    measured: Mapping[str, float]
    objective: float
    comparison: LatencyComparison
    choosing_s: float
    seconds: float


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


def reach(
    goals: Goal | Sequence[Goal],
    losses: Figure,
    costs: Costs,
    rig: Rig,
    model: nn.Module,
    groups: Groups,
    *,
    attempts: int = ATTEMPTS,
    criterion: str = "",
    allocation: AllocationName = "knapsack",
    scores: Scores | None = None,
    solver_seconds: float = SECONDS,
) -> Reached:
    """Find the plan of least loss that measurably meets all goals, one of them to its tolerance.

    Each attempt chooses on the predicted figures, divided by how wrong they were at the attempt before,
    exports the pruned graph, measures it beside the dense model and fits the latency model to it too. A goal
    of ``quality_drop`` turns it around: the milliseconds are made least where the loss stays below that
    bound.

    Args:
        goals: one or several, of any kind but ``sparsity``.
        losses: what each lever loses at its levels (:func:`prunekit.plan.figures.loss_figure`).
        costs: of the target.
        rig: the same target.
        model: the dense model.
        groups: of the model.
        attempts: at most.
        criterion: what scored the units; recorded in the plan.
        allocation: what chooses; besides the knapsack the baselines that it is compared with
            (:data:`prunekit.plan.baselines.ALLOCATIONS`), for any goal but ``quality_drop``.
        scores: by group name ``[units]``, by which the baselines rank; inside a group they order the units as
            the levers do.
        solver_seconds: that the knapsack may take each time.

    Raises:
        GoalError: out of reach, with the best figure and the groups in the way; not met within the
            attempts; a goal or an allocation that is none of those above, or that lacks its scores.
        MeasurementError: the machine is too noisy to tell.
    """
    asked = (goals,) if isinstance(goals, Goal) else tuple(goals)
    if attempts < 1:
        raise GoalError(f"{attempts} attempts were asked for", expected="1 or more", where="attempts")
    check_goals(asked, costs)
    if allocation not in ALLOCATIONS:
        raise GoalError(
            f"The allocation is {allocation!r}", expected=f"one of {list(ALLOCATIONS)}", where="allocation"
        )
    if allocation != "knapsack" and any(goal.kind == "quality_drop" for goal in asked):
        raise GoalError(
            f"The allocation {allocation!r} is asked for a quality_drop",
            expected="the knapsack, which alone makes the milliseconds least",
            where="allocation",
        )
    check_scores(allocation, costs.levers, scores)

    def choose_levels(objective: Figure, limits: Sequence[Limit]) -> Chosen | None:
        if allocation == "knapsack":
            return choose(objective, limits, costs.sizes, seconds=solver_seconds)
        return ALLOCATIONS[allocation](costs.levers, scores or {}, objective, limits)

    figures = GoalFigures(losses, costs, rig, model)
    attempting = _Search(asked, figures, model, groups, allocation, choose_levels)
    tried, overdone = attempting.run(attempts)
    plan = plan_at(tried[-1].levels, costs, groups, asked[0], criterion=criterion, scope=allocation)
    return Reached(plan, asked, tried, overdone, figures.costs, attempting.limits)


def plan_at(
    levels: IntArray,
    costs: Costs,
    groups: Groups,
    goal: Goal,
    *,
    criterion: str = "",
    scope: str = "knapsack",
) -> PruningPlan:
    """The plan that takes every lever to its level.

    Args:
        levels: ``[levers]``.
        costs: whose levers they are.
        groups: of the model.
        goal: recorded in the plan.
        criterion: what scored the units; recorded in the plan.
        scope: what chose the levels; recorded in the plan.
    """
    masks = costs.levers.masks(levels)
    return PruningPlan(
        keep={name: tuple(np.flatnonzero(mask).tolist()) for name, mask in masks.items()},
        sizes=costs.levers.sizes,
        fingerprint=groups.fingerprint,
        criterion=criterion,
        goal=goal,
        scope=scope,
        before=groups.cost(),
        after=groups.cost(masks),
    )


class _Search:
    """What all attempts share."""

    def __init__(
        self,
        goals: tuple[Goal, ...],
        figures: GoalFigures,
        model: nn.Module,
        groups: Groups,
        allocation: AllocationName,
        choose_levels: Callable[[Figure, Sequence[Limit]], Chosen | None],
    ) -> None:
        self.goals, self.figures, self.rig = goals, figures, figures.rig
        self._costs = figures.costs
        self.model, self.groups = model, groups
        self.allocation, self._choose = allocation, choose_levels
        self.limits: tuple[Limit, ...] = ()

    @property
    def costs(self) -> Costs:
        """Of the target, as they are known by now."""
        return self.figures.costs

    def run(self, most: int) -> tuple[tuple[Attempt, ...], bool]:
        """The attempts, the last of which counts, and whether it is more than was asked."""
        tried: list[Attempt] = []
        correction = {str(goal): 1.0 for goal in self.goals}
        while len(tried) < most:
            chosen, spent = self._chosen(correction)
            if chosen is None and self.allocation != "knapsack":
                break
            tried.append(self._attempt(self._fastest() if chosen is None else chosen, spent))
            if self._surpluses(tried[-1]) is None and chosen is None:
                raise self._out_of_reach(tried[-1])
            if self._is_met(tried[-1]):
                # Chosen because it measured well, so it is measured once more before that counts.
                tried[-1] = self._attempt(self._again(tried[-1]), tried[-1].choosing_s, seed=len(tried))
                if self._is_met(tried[-1]):
                    return self._checked(tried), False
            correction = self._corrected(tried)
        enough = [attempt for attempt in tried if self._surpluses(attempt) is not None]
        if not enough:
            raise self._not_met(tried) if len(tried) == most else self._no_plan()
        nearest = min(enough, key=lambda attempt: attempt.objective)
        others = [attempt for attempt in tried if attempt is not nearest]
        return self._checked([*others, nearest]), True

    def _checked(self, tried: Sequence[Attempt]) -> tuple[Attempt, ...]:
        for goal in self.goals:
            if goal.kind in TIMED_KINDS:
                check_steady(tried[-1].comparison, goal)
        return tuple(tried)

    def _fastest(self) -> Chosen:
        """The levels of the least milliseconds, whatever they lose."""
        found = choose(self.costs.ms, [], self.costs.sizes)
        return found or Chosen(self.costs.levers.last, 0.0, "descent", proven=False)

    def _chosen(self, correction: Mapping[str, float]) -> tuple[Chosen | None, float]:
        begin = time.perf_counter()
        objective, limits = self.figures.problem(self.goals, correction)
        self.limits = tuple(limits)
        chosen = self._choose(objective, limits)
        return chosen, time.perf_counter() - begin

    def _again(self, attempt: Attempt) -> Chosen:
        return Chosen(attempt.levels, attempt.objective, attempt.by, proven=False)

    def _attempt(self, chosen: Chosen, choosing_s: float, *, seed: int = 0) -> Attempt:
        begin = time.perf_counter()
        keep = self.costs.levers.masks(chosen.levels)
        small = reduced_graph(self.model, keep, self.groups) if keep else self.model
        name = f"plan-{tag(keep)}" if keep else "dense"
        rig = self.rig.fitted(self.groups, keep)
        artifact = rig.artifact(small, name)
        percentiles = [goal.percentile for goal in self.goals if goal.percentile is not None]
        with self.rig.quietly():
            comparison = measure_beside(
                self.figures.dense,
                rig.open_artifact(artifact),
                tolerance=min(self._timed_tolerances, default=0.02),
                percentile=max(percentiles, default=None),
                seed=seed,
            )
        measured = {
            str(goal): self.figures.measured(goal, comparison, artifact, small, chosen.levels)
            for goal in self.goals
        }
        predicted = {str(goal): self.figures.predicted(goal, chosen.levels) for goal in self.goals}
        seconds = time.perf_counter() - begin + choosing_s
        return Attempt(
            chosen.levels, chosen.by, predicted, measured, chosen.objective, comparison, choosing_s, seconds
        )

    @property
    def _timed_tolerances(self) -> list[float]:
        return [goal.tolerance for goal in self.goals if goal.kind in TIMED_KINDS]

    def _surpluses(self, attempt: Attempt) -> list[float] | None:
        """By how much each goal is more than met; None where one is missed by more than its tolerance."""
        found = [self.figures.surplus(goal, attempt.measured[str(goal)]) for goal in self.goals]
        missed = any(surplus < -goal.tolerance for surplus, goal in zip(found, self.goals, strict=True))
        return None if missed else found

    def _is_met(self, attempt: Attempt) -> bool:
        """Every goal is met but for its tolerance, and one of them is not overdone beyond it."""
        found = self._surpluses(attempt)
        if found is None:
            return False
        near = any(surplus <= goal.tolerance for surplus, goal in zip(found, self.goals, strict=True))
        return near or not attempt.levels.any() or self._has_quality_goal

    @property
    def _has_quality_goal(self) -> bool:
        return any(goal.kind == "quality_drop" for goal in self.goals)

    def _corrected(self, tried: Sequence[Attempt]) -> dict[str, float]:
        """How many times its prediction a figure measured, at the attempt before.

        The latency model is fitted to the attempts too; what it is then still wrong by is the correction.
        """
        last = tried[-1]
        self.figures.costs = self._costs.learnt(
            (self.costs.levers.masks(attempt.levels), attempt.comparison.speedup.median) for attempt in tried
        )
        found = {}
        for goal in self.goals:
            measured, predicted = last.measured[str(goal)], self.figures.predicted(goal, last.levels)
            wrong = predicted / measured if goal.kind in AT_LEAST else measured / max(predicted, 1e-300)
            # A plan that comes up again would be measured again: aim a little beside it.
            again = sum((attempt.levels == last.levels).all() for attempt in tried) - 1
            aside = 1 + again * goal.tolerance / 2 * (-1 if self.figures.surplus(goal, measured) > 0 else 1)
            found[str(goal)] = wrong * aside
        return found

    def _out_of_reach(self, best: Attempt) -> GoalError:
        """Say how fast the fastest model is, and name what keeps it from being faster."""
        figures = "; ".join(f"{goal}: the best is {best.measured[str(goal)]:,.4g}" for goal in self.goals)
        return GoalError(
            f"The goal {' and '.join(map(str, self.goals))} is out of reach: {figures}, measured with every "
            f"group at its least or its fastest. What takes longest then: {self._slowest(best.levels)}",
            expected="a goal within that",
            where="goal",
            remedy="Ask for less, loosen max_sparsity or min_units, or let more kinds of units go "
            "(granularity: layers, hidden)",
        )

    def _slowest(self, levels: IntArray) -> str:
        """The groups that the most milliseconds depend on at these levels."""
        shares, rest = shares_of_time(self.costs, levels)
        named = [f"'{name}' ({share:.0%})" for name, share in shares[:NAMED]]
        return f"{', '.join(named)}, and what no group changes ({rest:.0%})"

    def _no_plan(self) -> GoalError:
        return GoalError(
            f"No plan of the allocation {self.allocation!r} should meet {' and '.join(map(str, self.goals))}",
            expected="a goal that its steps come to",
            where="allocation",
            remedy="Ask for less, or let the knapsack choose",
        )

    def _not_met(self, tried: Sequence[Attempt]) -> GoalError:
        history = "; ".join(
            ", ".join(f"{goal}: {attempt.measured[str(goal)]:,.4g}" for goal in self.goals)
            for attempt in tried[-3:]
        )
        return GoalError(
            f"No plan met the goal within its tolerance in {len(tried)} attempts; the last gave {history}",
            expected=f"a figure within {min(goal.tolerance for goal in self.goals):.1%} of what was asked",
            where="goal",
            remedy="Raise the tolerance, or give the groups more widths to choose from (most_levels)",
        )
