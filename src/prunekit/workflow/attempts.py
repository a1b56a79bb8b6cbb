"""What a plan was made from, as plain JSON: each attempt, what limits it, and the front it lies on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from prunekit.plan import Goal
from prunekit.targeting import Attempt, Planner, Reached, predicted_front
from prunekit.targeting.limiting import shares
from prunekit.workflow.job import Result

NAMED = 6
"""Groups that are named as limiting."""

POINTS = 12
"""Speed-ups of which the least loss is foretold."""


def record_of(planner: Planner, asked: Sequence[Goal], reached: Reached) -> Result:
    """The record of how the goals of a cycle were reached.

    ``asked`` and, of each attempt, ``predicted``, ``measured`` and ``intervals`` are in the order of goals,
    of ``macs`` those of one example; an interval is None where nothing was timed. Losses and speed-ups are
    relative to the model that the cycle starts from.
    """
    losses = planner.losses
    last = reached.attempts[-1]
    limiting, rest = shares(planner.costs.ms, planner.costs.levers, last.levels)
    return {
        "asked": [{**asdict(goal), "words": str(goal)} for goal in asked],
        "attempts": [
            {
                "by": attempt.by,
                "predicted": [attempt.predicted[str(goal)] for goal in asked],
                "measured": [attempt.measured[str(goal)] for goal in asked],
                "intervals": [_interval(attempt, goal) for goal in asked],
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
        "overdone": reached.overdone,
        "front": [
            {"speedup": point.speedup, "loss": point.loss} for point in predicted_front(planner, POINTS)
        ],
    }


def _interval(attempt: Attempt, goal: Goal) -> Result | None:
    found = attempt.intervals.get(str(goal))
    return None if found is None else found.as_dict()
