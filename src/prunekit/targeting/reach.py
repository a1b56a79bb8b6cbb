"""Reaching measured goals: choose, export, measure, correct, and choose again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from prunekit.errors import GoalError
from prunekit.graph import Groups
from prunekit.measure import LatencyComparison
from prunekit.measure.runtimes import NodeTime
from prunekit.plan import Goal, PruningPlan
from prunekit.plan.baselines import ALLOCATIONS, AllocationName, check_scores
from prunekit.plan.figures import Figure, Limit
from prunekit.plan.knapsack import SOLVER_SECONDS, Chosen, choose
from prunekit.surgery import reduced_graph
from prunekit.targeting.attempts import Attempt, Reached, is_met, may_be_met, surpluses
from prunekit.targeting.bracket import Bracket, brackets_of
from prunekit.targeting.costs import Costs, Seen, tag
from prunekit.targeting.goal_figures import TIMED_KINDS, GoalFigures, check_goals
from prunekit.targeting.measuring import (
    USUAL_EFFORT,
    Effort,
    check_steady,
    enough_to_tell,
    measure_beside,
    tells,
    timed_interval,
)
from prunekit.targeting.refusals import Asked, Measured, no_plan, not_met, out_of_reach
from prunekit.targeting.together import Beyond, why_beyond
from prunekit.types import IntArray

if TYPE_CHECKING:
    from prunekit.targeting.planner import Planner

ATTEMPTS = 8

LEARNING = 2
"""Attempts that choose among all plans; later ones on the way between two on either side of the goals."""

ASIDE = 8
"""How often to aim half a tolerance further aside for a plan that was not tried."""


def reach(
    planner: Planner,
    goals: Sequence[Goal],
    *,
    attempts: int = ATTEMPTS,
    allocation: AllocationName = "knapsack",
) -> Reached:
    """Find the plan of least loss that measurably meets all goals, one of them to its tolerance.

    Each attempt chooses on the predicted figures, divided by how wrong they were at the attempt before,
    exports the pruned graph, measures it beside the dense model and fits the latency model to it too. After
    :data:`LEARNING` attempts of which one went too far, plans are chosen on the way from it back to the
    other. A goal of ``quality_drop`` turns it around: the milliseconds are made least where the loss stays
    below that bound.

    Args:
        planner: of the model on its target; its scores are what the baselines rank by.
        goals: at least one, of any kind but ``sparsity``.
        attempts: at most, >= 1.
        allocation: what chooses; besides the knapsack the baselines that it is compared with
            (:data:`prunekit.plan.baselines.ALLOCATIONS`), for any goal but ``quality_drop``.

    Raises:
        GoalError: out of reach, alone or together with others, with the best figures and the groups in the
            way; not met within the attempts; a goal or an allocation that is none of those above, or that
            lacks its scores.
        MeasurementError: the machine is too noisy to tell, or a percentile had too few calls.

    Source: adapting until the measured figure meets the budget: Yang et al., 2018, NetAdapt, algorithm 1,
    https://arxiv.org/abs/1804.03230. Deviations: every attempt chooses the whole plan anew, where NetAdapt
    narrows one layer a step and trains briefly in between; the whole model is timed, beside the dense one,
    and what it took corrects the prediction, where NetAdapt adds up a table of layers.
    """
    asked, costs, scores = tuple(goals), planner.costs, planner.scores
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
            return choose(objective, limits, costs.sizes, seconds=SOLVER_SECONDS)
        return ALLOCATIONS[allocation](costs.levers, scores or {}, objective, limits)

    figures = GoalFigures(planner.losses, costs, planner.rig, planner.model)
    attempting = _Reaching(asked, figures, planner.model, planner.groups, allocation, choose_levels)
    tried, overdone = attempting.run(attempts)
    plan = plan_at(
        tried[-1].levels, costs, planner.groups, asked[0], criterion=planner.criterion, scope=allocation
    )
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


class _Reaching:
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
        self._as_measured = figures.costs
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
        chosen, beyond, nearest = None, None, None
        while len(tried) < most:
            chosen, spent, beyond = *self._chosen(correction, tried), None
            if chosen is None:
                if self.allocation != "knapsack" or any(map(self._misses_none, tried)):
                    break
                chosen, beyond = self._instead(correction)
            known = _among(tried, chosen.levels)
            if known is not None:  # Nothing would be learnt.
                nearest = tried.index(known) if beyond is not None else nearest
                break
            tried.append(self._attempt(chosen, spent))
            nearest = len(tried) - 1 if beyond is not None else nearest
            if may_be_met(tried[-1], self.goals, self.figures):
                # Chosen because it measured well, so it is measured once more before that counts.
                tried[-1] = self._once_more(tried[-1], seed=len(tried))
            correction = self._corrected(tried)
            if is_met(tried[-1], self.goals, self.figures):
                return self._checked(tried), False
        least = self._least(tried)
        if least is None:
            asked = Asked(self.goals, self.figures, correction)
            if beyond is not None and nearest is not None:
                raise out_of_reach(asked, beyond, _told(tried[nearest]))
            if chosen is None:
                raise no_plan(asked, self.allocation)
            raise not_met(asked, [_told(attempt) for attempt in tried])
        overdone = not is_met(least, self.goals, self.figures)
        return self._checked([*(attempt for attempt in tried if attempt is not least), least]), overdone

    def _misses_none(self, attempt: Attempt) -> bool:
        return surpluses(attempt, self.goals, self.figures) is not None

    def _least(self, tried: list[Attempt]) -> Attempt | None:
        """Of the attempts that miss no goal the one that loses least, measured until that can be told."""
        for place in sorted(range(len(tried)), key=lambda place: tried[place].objective):
            if self._misses_none(tried[place]) and not tells(tried[place].comparison, self.goals):
                tried[place] = self._once_more(tried[place], seed=len(tried))
            if self._misses_none(tried[place]):
                return tried[place]
        return None

    def _checked(self, tried: Sequence[Attempt]) -> tuple[Attempt, ...]:
        for goal in self.goals:
            if goal.kind in TIMED_KINDS:
                check_steady(tried[-1].comparison, goal)
        return tuple(tried)

    def _instead(self, correction: Mapping[str, float]) -> tuple[Chosen, Beyond | None]:
        """What to try where no plan should meet the goals: one that does to their tolerances, or the nearest.

        And in the second case why none does.
        """
        objective, limits = self.figures.problem(self.goals, correction)
        wider = [
            Limit(limit.figure, limit.most * (1 + goal.tolerance))
            for limit, goal in zip(limits, self.goals, strict=True)
        ]
        chosen = self._choose(objective, wider)
        if chosen is not None:
            return chosen, None
        beyond = why_beyond(objective, wider, self.costs.sizes)
        levels = beyond.nearest
        return Chosen(levels, objective.at(levels), "descent", proven=False), beyond

    def _chosen(
        self, correction: Mapping[str, float], tried: Sequence[Attempt]
    ) -> tuple[Chosen | None, float]:
        """What to try: the best plan of all, once enough are known one on the way between the two nearest.

        Where it was tried already, one that is aimed a little beside the goals; None where no plan should
        meet them, and a plan that was tried where there is no other near.
        """
        begin, chosen = time.perf_counter(), None
        brackets = brackets_of(tried, self.goals, self.figures) if len(tried) >= LEARNING else []
        if self.allocation == "knapsack":
            chosen = self._between(brackets, tried)
        elif brackets:
            correction = brackets[0].correction(self.goals, self.figures)
        if chosen is None:
            chosen = self._untried(correction, tried)
        return chosen, time.perf_counter() - begin

    def _between(self, brackets: Sequence[Bracket], tried: Sequence[Attempt]) -> Chosen | None:
        """One on the way between two attempts, the nearest two first; None where no way has one left."""
        for bracket in brackets:
            objective, limits = self.figures.problem(self.goals, bracket.correction(self.goals, self.figures))
            self.limits = tuple(limits)
            chosen = bracket.choose(objective, limits, self.goals, self.figures, tried=tried)
            if chosen is not None:
                return chosen
        return None

    def _untried(self, correction: Mapping[str, float], tried: Sequence[Attempt]) -> Chosen | None:
        """The best plan of all that was not tried, or None, or one that was."""
        chosen = None
        for step in range(1 + ASIDE):
            aside = {
                str(goal): 1 + step * goal.tolerance / 2 * (-1 if self._is_over(goal, tried) else 1)
                for goal in self.goals
            }
            objective, limits = self.figures.problem(
                self.goals, {goal: wrong * aside[goal] for goal, wrong in correction.items()}
            )
            found = self._choose(objective, limits)
            if found is None:
                break
            chosen, self.limits = found, tuple(limits)
            if _among(tried, chosen.levels) is None:
                break
        return chosen

    def _is_over(self, goal: Goal, tried: Sequence[Attempt]) -> bool:
        """The last attempt more than meets a goal."""
        return bool(tried) and self.figures.surplus(goal, tried[-1].measured[str(goal)]) > 0

    def _once_more(self, attempt: Attempt, *, seed: int) -> Attempt:
        """The same plan, measured again, and further where that cannot tell whether the goals are met."""
        again = self._again(attempt, seed=seed)
        if tells(again.comparison, self.goals):
            return again
        return self._again(again, known=again.comparison, seed=seed + ATTEMPTS)

    def _again(self, attempt: Attempt, *, known: LatencyComparison | None = None, seed: int) -> Attempt:
        chosen = Chosen(attempt.levels, attempt.objective, attempt.by, proven=False)
        effort = enough_to_tell(attempt.comparison, self.goals, counts=known is not None)
        again = self._attempt(chosen, attempt.choosing_s, effort, known=known, seed=seed, nodes=attempt.nodes)
        return replace(again, seconds=again.seconds + attempt.seconds - attempt.choosing_s)

    def _attempt(
        self,
        chosen: Chosen,
        choosing_s: float,
        effort: Effort = USUAL_EFFORT,
        *,
        known: LatencyComparison | None = None,
        seed: int = 0,
        nodes: tuple[NodeTime, ...] | None = None,
    ) -> Attempt:
        begin = time.perf_counter()
        keep = self.costs.levers.masks(chosen.levels)
        small = reduced_graph(self.model, keep, self.groups) if keep else self.model
        name = f"plan-{tag(keep)}" if keep else "dense"
        rig = self.rig.fitted(self.groups, keep)
        artifact = rig.artifact(small, name)
        timed = [goal for goal in self.goals if goal.kind in TIMED_KINDS]
        with self.rig.quietly():
            comparison = measure_beside(
                self.figures.dense,
                rig.open_artifact(artifact),
                tolerance=min((goal.tolerance for goal in timed), default=0.02),
                goals=timed,
                effort=effort,
                least_seconds=self.rig.seconds,
                known=known,
                seed=seed,
            )
        nodes = rig.node_times(artifact) if nodes is None else nodes
        measured = {
            str(goal): self.figures.measured(goal, comparison, artifact, small, chosen.levels)
            for goal in self.goals
        }
        predicted = {str(goal): self.figures.predicted(goal, chosen.levels) for goal in self.goals}
        batch = self.rig.target.batch
        intervals = {str(goal): timed_interval(goal, comparison, batch) for goal in timed}
        return Attempt(
            chosen.levels,
            chosen.by,
            predicted,
            measured,
            {goal: found for goal, found in intervals.items() if found is not None},
            chosen.objective,
            comparison,
            choosing_s,
            time.perf_counter() - begin + choosing_s,
            nodes,
        )

    def _corrected(self, tried: Sequence[Attempt]) -> dict[str, float]:
        """How many times its prediction a figure measured, at the attempt before.

        The latency model is fitted to the attempts too; what it is then still wrong by is the correction.
        """
        last = tried[-1]
        self.figures.costs = self._as_measured.learnt(
            self.rig,
            [
                Seen(self.costs.levers.masks(each.levels), each.comparison.speedup.median, each.nodes)
                for each in tried
            ],
        )
        return {
            str(goal): self.figures.wrong(goal, last.measured[str(goal)], last.levels) for goal in self.goals
        }


def _among(tried: Sequence[Attempt], levels: IntArray) -> Attempt | None:
    return next((attempt for attempt in tried if (attempt.levels == levels).all()), None)


def _told(attempt: Attempt) -> Measured:
    return Measured(attempt.levels, attempt.measured, attempt.intervals)
