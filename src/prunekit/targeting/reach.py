"""Reaching measured goals: choose, export, measure, correct, and choose again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from prunekit.errors import GoalError
from prunekit.graph import Groups
from prunekit.measure import LatencyComparison, file_size
from prunekit.plan import Goal, PruningPlan
from prunekit.plan.figures import Figure
from prunekit.plan.knapsack import SECONDS, Chosen, Limit, choose
from prunekit.surgery import reduced_graph
from prunekit.targeting.costs import Costs, tag
from prunekit.targeting.limiting import shares_of_time
from prunekit.targeting.measuring import check_steady, measure_beside, milliseconds
from prunekit.targeting.rig import Rig
from prunekit.types import IntArray

ATTEMPTS = 8
NAMED = 5

AT_LEAST = frozenset({"speedup", "throughput"})
"""Goals that a larger figure meets; all others are met by a smaller one."""


@dataclass(frozen=True, eq=False)
class Attempt:
    """One plan that was carried out and measured.

    Attributes:
        levels: of the levers.
        by: what chose it, ``milp`` or ``descent``.
        predicted: by goal, as the model of cost saw it.
        measured: by goal.
        objective: the loss predicted; with a goal of ``quality_drop`` the milliseconds.
        comparison: beside the dense model.
        choosing_s: that choosing took.
        seconds: that the attempt took altogether.
    """

    levels: IntArray
    by: str
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
    """

    plan: PruningPlan
    goals: tuple[Goal, ...]
    attempts: tuple[Attempt, ...]
    overdone: bool = False

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
        solver_seconds: that choosing may take each time.

    Raises:
        GoalError: out of reach, with the best figure and the groups in the way; or not met within the
            attempts.
        MeasurementError: the machine is too noisy to tell.
    """
    asked = (goals,) if isinstance(goals, Goal) else tuple(goals)
    return _Search(asked, losses, costs, rig, model, groups, criterion, solver_seconds).run(attempts)


class _Search:
    """What all attempts share."""

    def __init__(
        self,
        goals: tuple[Goal, ...],
        losses: Figure,
        costs: Costs,
        rig: Rig,
        model: nn.Module,
        groups: Groups,
        criterion: str,
        solver_seconds: float,
    ) -> None:
        self.goals, self.losses, self.costs, self.rig = goals, losses, costs, rig
        self._costs = costs
        self.model, self.groups, self.criterion = model, groups, criterion
        self._solver_seconds = solver_seconds
        self._nothing = np.zeros(len(costs.levers), dtype=np.int64)
        artifact = rig.artifact(model, "dense")
        self._dense_artifact = artifact
        with rig.quietly():
            self._dense = rig.open_artifact(artifact)
        self._dense_bytes = stored_bytes(artifact, model)
        self._dense_memory: int | None = None

    def run(self, most: int) -> Reached:
        tried: list[Attempt] = []
        correction = {str(goal): 1.0 for goal in self.goals}
        while len(tried) < most:
            chosen, spent = self._chosen(correction)
            tried.append(self._attempt(self._fastest() if chosen is None else chosen, spent))
            if self._surpluses(tried[-1]) is None and chosen is None:
                raise self._out_of_reach(tried[-1])
            if self._is_met(tried[-1]):
                return self._reached(tried)
            correction = self._corrected(tried)
        enough = [attempt for attempt in tried if self._surpluses(attempt) is not None]
        if not enough:
            raise self._not_met(tried)
        nearest = min(enough, key=lambda attempt: attempt.objective)
        others = [attempt for attempt in tried if attempt is not nearest]
        return self._reached([*others, nearest], overdone=True)

    def _reached(self, tried: Sequence[Attempt], *, overdone: bool = False) -> Reached:
        for goal in self.goals:
            if goal.kind in ("speedup", "latency_ms", "throughput"):
                check_steady(tried[-1].comparison, goal)
        return Reached(self._plan(tried[-1].levels), self.goals, tuple(tried), overdone)

    def _fastest(self) -> Chosen:
        """The levels of the least milliseconds, whatever they lose."""
        found = choose(self.costs.ms, [], self.costs.sizes, seconds=self._solver_seconds)
        return found or Chosen(self.costs.levers.last, 0.0, "descent", proven=False)

    def _chosen(self, correction: Mapping[str, float]) -> tuple[Chosen | None, float]:
        begin = time.perf_counter()
        quality = [goal for goal in self.goals if goal.kind == "quality_drop"]
        limits = [
            Limit(self._figure(goal), self._bound(goal) / correction[str(goal)])
            for goal in self.goals
            if goal not in quality
        ]
        objective = self.losses
        if quality:
            objective = self.costs.ms
            limits += [Limit(self.losses, float(goal.reach or 0)) for goal in quality]
        chosen = choose(objective, limits, self.costs.sizes, seconds=self._solver_seconds)
        return chosen, time.perf_counter() - begin

    def _figure(self, goal: Goal) -> Figure:
        """What has to stay below :meth:`_bound`."""
        if goal.kind in ("params",):
            return self.costs.params
        if goal.kind == "macs":
            return self.costs.macs
        if goal.kind == "kv_cache_bytes":
            return self.costs.cache_bytes
        if goal.kind in ("size_bytes", "memory_bytes"):
            return self.costs.param_bytes
        return self.costs.ms

    def _bound(self, goal: Goal) -> float:
        costs, reach = self.costs, float(goal.reach or 0)
        if goal.kind in ("params", "macs"):
            before = (costs.params if goal.kind == "params" else costs.macs).at(self._nothing)
            return float(goal.asked(round(before)))
        if goal.kind == "speedup":
            return costs.ms.at(self._nothing) / reach
        if goal.kind == "throughput":
            return 1000 * self.rig.target.batch / reach
        if goal.kind in ("latency_ms", "kv_cache_bytes"):
            return reach
        if goal.kind == "size_bytes":
            return reach * costs.param_bytes.at(self._nothing) / self._dense_bytes
        beside = self._memory_beside()
        if reach <= beside:
            raise GoalError(
                f"The goal is {goal}, and the runtime and what it computes on take {beside:,.0f} bytes",
                expected="a memory above that",
                where="goal",
                remedy="Ask for more memory, a smaller batch or a shorter sequence",
            )
        return reach - beside

    def _memory_beside(self) -> float:
        """Peak memory of serving the dense model without its parameters."""
        if self._dense_memory is None:
            self._dense_memory = self._memory(self._dense_artifact)
        return self._dense_memory - self.costs.param_bytes.at(self._nothing)

    def _memory(self, artifact: object) -> int:
        return self.rig.peak_bytes(artifact, self._dense)

    def _attempt(self, chosen: Chosen, choosing_s: float) -> Attempt:
        begin = time.perf_counter()
        keep = self.costs.levers.masks(chosen.levels)
        small = reduced_graph(self.model, keep, self.groups) if keep else self.model
        name = f"plan-{tag(keep)}" if keep else "dense"
        artifact = self.rig.artifact(small, name)
        percentiles = [goal.percentile for goal in self.goals if goal.percentile is not None]
        with self.rig.quietly():
            comparison = measure_beside(
                self._dense,
                self.rig.open_artifact(artifact),
                tolerance=min(goal.tolerance for goal in self.goals),
                percentile=max(percentiles, default=None),
            )
        measured = {
            str(goal): self._measured(goal, comparison, artifact, small, chosen) for goal in self.goals
        }
        predicted = {str(goal): self._predicted(goal, chosen.levels) for goal in self.goals}
        seconds = time.perf_counter() - begin + choosing_s
        return Attempt(
            chosen.levels, chosen.by, predicted, measured, chosen.objective, comparison, choosing_s, seconds
        )

    def _measured(
        self,
        goal: Goal,
        comparison: LatencyComparison,
        artifact: object,
        small: nn.Module,
        chosen: Chosen,
    ) -> float:
        if goal.kind == "speedup":
            return comparison.speedup.median
        if goal.kind == "latency_ms":
            return milliseconds(comparison, goal.percentile)
        if goal.kind == "throughput":
            return 1000 * self.rig.target.batch / comparison.pruned.p50_ms
        if goal.kind == "size_bytes":
            return float(stored_bytes(artifact, small))
        if goal.kind == "memory_bytes":
            return float(self._memory(artifact))
        return self._predicted(goal, chosen.levels)

    def _predicted(self, goal: Goal, levels: IntArray) -> float:
        costs = self.costs
        if goal.kind == "quality_drop":
            return self.losses.at(levels)
        if goal.kind == "speedup":
            return costs.speedup(levels)
        if goal.kind == "throughput":
            return 1000 * self.rig.target.batch / costs.ms.at(levels)
        if goal.kind == "size_bytes":
            share = costs.param_bytes.at(levels) / costs.param_bytes.at(self._nothing)
            return share * self._dense_bytes
        if goal.kind == "memory_bytes":
            return self._memory_beside() + costs.param_bytes.at(levels)
        return self._figure(goal).at(levels)

    def _surpluses(self, attempt: Attempt) -> list[float] | None:
        """By how much each goal is more than met; None where one is missed by more than its tolerance."""
        found = [self._surplus(goal, attempt.measured[str(goal)]) for goal in self.goals]
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

    def _surplus(self, goal: Goal, measured: float) -> float:
        """How much better than asked, relative to what was asked; below 0 it is missed."""
        asked = float(self._bound(goal) if goal.kind in ("params", "macs") else goal.reach or 0)
        return measured / asked - 1 if goal.kind in AT_LEAST else 1 - measured / asked

    def _corrected(self, tried: Sequence[Attempt]) -> dict[str, float]:
        """How many times its prediction a figure measured, at the attempt before.

        The latency model is fitted to the attempts too; what it is then still wrong by is the correction.
        """
        last = tried[-1]
        self.costs = self._costs.learnt(
            (self.costs.levers.masks(attempt.levels), attempt.comparison.speedup.median) for attempt in tried
        )
        found = {}
        for goal in self.goals:
            measured, predicted = last.measured[str(goal)], self._predicted(goal, last.levels)
            wrong = predicted / measured if goal.kind in AT_LEAST else measured / predicted
            # A plan that comes up again would be measured again: aim a little beside it.
            again = sum((attempt.levels == last.levels).all() for attempt in tried) - 1
            aside = 1 + again * goal.tolerance / 2 * (-1 if self._surplus(goal, measured) > 0 else 1)
            found[str(goal)] = wrong * aside
        return found

    def _plan(self, levels: IntArray) -> PruningPlan:
        masks = self.costs.levers.masks(levels)
        return PruningPlan(
            keep={name: tuple(np.flatnonzero(mask).tolist()) for name, mask in masks.items()},
            sizes=self.costs.levers.sizes,
            fingerprint=self.groups.fingerprint,
            criterion=self.criterion,
            goal=self.goals[0],
            scope="knapsack",
            before=self.groups.cost(),
            after=self.groups.cost(masks),
        )

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


def stored_bytes(artifact: object, module: nn.Module) -> int:
    """Bytes of an exported file, or of the tensors of a module that is not exported."""
    path = getattr(artifact, "path", None)
    if path is not None:
        return file_size(path)
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
