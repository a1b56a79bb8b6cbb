"""The front: the least loss at every latency, as predicted and as measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from prunekit.errors import GoalError, MeasurementError
from prunekit.plan import Goal
from prunekit.plan.baselines import AllocationName
from prunekit.plan.figures import Figure, Limit
from prunekit.plan.knapsack import choose
from prunekit.surgery import reduced_graph
from prunekit.surgery.sensitivity import loss_of
from prunekit.targeting.attempts import Reached
from prunekit.targeting.costs import Costs
from prunekit.targeting.planner import Planner
from prunekit.types import IntArray

POINT_SECONDS = 2.0
"""That the exact solver may take for each point."""


@dataclass(frozen=True)
class Point:
    """One plan of the front.

    Attributes:
        speedup: times as fast as the dense model.
        ms: of one call.
        loss: that the levers are taken to lose together.
        macs: of one call.
        params: number of parameters.
        levels: of the levers.
    """

    speedup: float
    ms: float
    loss: float
    macs: float
    params: float
    levels: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as what JSON can hold."""
        return {**asdict(self), "levels": list(self.levels)}


@dataclass(frozen=True)
class MeasuredPoint:
    """One goal that was reached.

    Attributes:
        goal: as it was asked.
        predicted: the plan as the model of cost sees it.
        speedup: measured, the median of the pairs.
        low: end of its 95 % interval.
        high: the other end.
        ms: measured, of one call.
        measured_loss: the loss of the pruned model, before any recovery; None where no loss was given.
        attempts: plans that were measured on the way.
        allocation: what chose.
        overdone: the goal is more than met, because no plan that was tried came nearer.
    """

    goal: str
    predicted: Point
    speedup: float
    low: float
    high: float
    ms: float
    measured_loss: float | None
    attempts: int
    allocation: str
    overdone: bool

    def as_dict(self) -> dict[str, Any]:
        """The same as what JSON can hold."""
        return {**asdict(self), "predicted": self.predicted.as_dict()}


@dataclass(frozen=True)
class MeasuredFront:
    """What became of several goals.

    Attributes:
        points: of the goals that were reached, in the order in which they were asked.
        missed: by goal, why not.
    """

    points: tuple[MeasuredPoint, ...]
    missed: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """The same as what JSON can hold."""
        return {"points": [point.as_dict() for point in self.points], "missed": dict(self.missed)}


def predicted_front(planner: Planner, count: int = 12) -> tuple[Point, ...]:
    """The plans of least loss at latencies that lie evenly, by their logarithms, from dense to the fastest.

    Args:
        planner: of the model on its target.
        count: latencies, at least 2.

    Returns:
        From slow to fast, no two alike, and none that another one is at least as good as in both latency and
        loss; the last is the fastest plan of all. Fewer than ``count`` where several latencies have the same
        plan.

    Raises:
        GoalError: a count below 2.

    Source: one objective made least under bounds on the other: Haimes, Lasdon and Wismer, 1971, On a
    Bicriterion Formulation, https://doi.org/10.1109/TSMC.1971.4308298. Deviation: a few bounds, so points
    between them are not found, and the solver's gap counts.
    """
    if count < 2:
        raise GoalError(f"{count} points were asked for", expected="at least 2", where="count")
    costs, losses = planner.costs, planner.losses
    dense = np.zeros(len(costs.levers), dtype=np.int64)
    fastest = choose(costs.ms, [], costs.sizes, seconds=POINT_SECONDS)
    least = costs.ms.at(dense if fastest is None else fastest.levels)
    found = [point_at(dense, losses, costs)]
    for most in np.geomspace(max(costs.ms.at(dense), least), least, count):
        chosen = choose(losses, [Limit(costs.ms, float(most))], costs.sizes, seconds=POINT_SECONDS)
        if chosen is not None:
            found.append(point_at(chosen.levels, losses, costs))
    return undominated(found)


def measured_front(
    planner: Planner,
    goals: Sequence[Goal],
    *,
    loss: Callable[[nn.Module], float] | None = None,
    allocation: AllocationName = "knapsack",
) -> MeasuredFront:
    """Reach each goal by itself, measured on the target; each learns from the attempts at those before.

    Args:
        planner: of the model on its target.
        goals: one for each point.
        loss: of a model on calibration data; with it each plan's pruned graph is judged.
        allocation: what chooses, so that ways of choosing can be compared at equal measured latency.

    Returns:
        The goals that were reached; and those that were not, because they are out of reach or the machine was
        too noisy to tell, with what was said.
    """
    points, missed = [], {}
    for goal in goals:
        try:
            reached = planner.reach(goal, allocation=allocation)
        except (GoalError, MeasurementError) as error:
            missed[str(goal)] = str(error)
            continue
        planner = planner.learnt(reached)
        points.append(_measured(planner, goal, reached, loss, allocation))
    return MeasuredFront(tuple(points), missed)


def point_at(levels: IntArray, losses: Figure, costs: Costs) -> Point:
    """The predicted figures at these levels."""
    return Point(
        speedup=costs.speedup(levels),
        ms=costs.ms.at(levels),
        loss=losses.at(levels),
        macs=costs.macs.at(levels),
        params=costs.params.at(levels),
        levels=tuple(int(level) for level in levels),
    )


def undominated(points: Sequence[Point]) -> tuple[Point, ...]:
    """From slow to fast, those that no other is at least as good as in both latency and loss."""
    left: list[Point] = []
    for point in sorted(points, key=lambda point: (point.ms, point.loss, point.levels)):
        if not left or point.loss < left[-1].loss:
            left.append(point)
    return tuple(reversed(left))


def _measured(
    planner: Planner,
    goal: Goal,
    reached: Reached,
    loss: Callable[[nn.Module], float] | None,
    allocation: str,
) -> MeasuredPoint:
    last = reached.attempts[-1]
    found = None
    if loss is not None:
        keep = planner.costs.levers.masks(last.levels)
        where = f"the plan that reached {goal}"
        found = loss_of(loss, reduced_graph(planner.model, keep, planner.groups), where)
    speedup = last.comparison.speedup
    return MeasuredPoint(
        goal=str(goal),
        predicted=point_at(last.levels, planner.losses, planner.costs),
        speedup=speedup.median,
        low=speedup.low,
        high=speedup.high,
        ms=last.comparison.pruned.p50_ms,
        measured_loss=found,
        attempts=len(reached.attempts),
        allocation=allocation,
        overdone=reached.overdone,
    )
