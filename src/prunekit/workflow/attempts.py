"""What a plan was made from, as plain JSON: each attempt, what limits it, and the front it lies on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from prunekit.plan import Goal
from prunekit.plan.figures import loss_figure
from prunekit.plan.knapsack import Limit, choose
from prunekit.targeting import Planner, Reached
from prunekit.targeting.limiting import shares_of_time
from prunekit.workflow.job import Result

NAMED = 6
"""Groups that are named as limiting."""

POINTS = 12
"""Speed-ups of which the least loss is foretold."""

SECONDS = 1.0
"""For each of them, of the exact solver."""


def record_of(planner: Planner, asked: Sequence[Goal], reached: Reached) -> Result:
    """The record of how the goals of a cycle were reached.

    ``asked`` and, of each attempt, ``predicted`` and ``measured`` are in the order of the goals. Losses and
    speed-ups are relative to the model that the cycle starts from.
    """
    losses = loss_figure([curve.losses for curve in planner.curves])
    last = reached.attempts[-1]
    # Costs are of a call; people count the MACs of one example.
    of_one = planner.groups.cost().macs / planner.costs.macs.at([0] * len(planner.costs.levers))
    units = [of_one if goal.kind == "macs" else 1.0 for goal in asked]

    def figures(found: Mapping[str, float]) -> list[float]:
        return [found[str(goal)] * unit for goal, unit in zip(asked, units, strict=True)]

    limiting, rest = shares_of_time(planner.costs, last.levels)
    return {
        "asked": [{**asdict(goal), "words": str(goal)} for goal in asked],
        "attempts": [
            {
                "by": attempt.by,
                "predicted": figures(attempt.predicted),
                "measured": figures(attempt.measured),
                "loss": losses.at(attempt.levels),
                "speedup": asdict(attempt.comparison.speedup),
                "predicted_speedup": planner.costs.speedup(attempt.levels),
                "noise": attempt.comparison.noise.statement,
                "choosing_s": attempt.choosing_s,
                "seconds": attempt.seconds,
            }
            for attempt in reached.attempts
        ],
        "limiting": [{"name": name, "share": share} for name, share in limiting[:NAMED]],
        "unchanged": rest,
        "front": front_of(planner),
    }


def front_of(planner: Planner, count: int = POINTS) -> list[dict[str, float]]:
    """The least loss that is foretold at speed-ups from 1 to the highest there is.

    Args:
        planner: of the model.
        count: of speed-ups, evenly spread.
    """
    costs = planner.costs
    losses = loss_figure([curve.losses for curve in planner.curves])
    fastest = choose(costs.ms, [], costs.sizes, seconds=SECONDS)
    if fastest is None:
        return []
    highest = costs.speedup(fastest.levels)
    whole = costs.ms.at(np.zeros_like(fastest.levels))
    found = []
    for speedup in np.linspace(1.0, highest, count).tolist():
        chosen = choose(losses, [Limit(costs.ms, whole / speedup)], costs.sizes, seconds=SECONDS)
        if chosen is not None:
            found.append({"speedup": costs.speedup(chosen.levels), "loss": losses.at(chosen.levels)})
    return found
