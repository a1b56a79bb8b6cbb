"""Measured goals once more, on the model that ships: asked, planned, validated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from prunekit.measure import RUNTIMES, LatencyComparison, Target, file_size
from prunekit.plan import Goal, PruningPlan
from prunekit.targeting.goal_figures import AT_LEAST, stored_bytes
from prunekit.targeting.measuring import timed_figure, timed_interval
from prunekit.workflow.deciding import name_of
from prunekit.workflow.job import Job, Result
from prunekit.workflow.models import groups_of, read_plan
from prunekit.workflow.reaching import REACHED, calibration_loss
from prunekit.workflow.targets import goals_of, target_of


@dataclass(frozen=True)
class Validated:
    """What validation measured.

    Attributes:
        target: where.
        latency: of the pruned model beside the dense one.
        memory_bytes: peak while the pruned model is served.
        file: the exported pruned model.
        models: ``dense``, and ``pruned`` as it ships.
    """

    target: Target
    latency: LatencyComparison
    memory_bytes: int
    file: Path
    models: Mapping[str, nn.Module]


def judged_goals(job: Job, found: Validated) -> list[Result]:
    """Each goal of the run with what planning measured and what validation did, and whether it is met."""
    last = f"{name_of(job.recipe.schedule.cycles)}/plan"
    plan = read_plan(job.files[f"{last}/plan.json"])
    planned = json.loads(job.files[f"{last}/{REACHED}"].read_text())["planned"]
    judged = []
    for goal, before in zip(goals_of(job.recipe), planned, strict=True):
        asked = _asked(goal, plan)
        value = _value(goal, job, found, plan)
        value = before if value is None else value
        known = timed_interval(goal, found.latency, found.target.batch)
        surplus = value / asked - 1 if goal.kind in AT_LEAST else 1 - value / asked
        judged.append(
            {
                **asdict(goal),
                "words": str(goal),
                "asked": asked,
                "planned": before,
                "validated": value,
                "interval": None if known is None else known.as_dict(),
                "met": surplus >= -goal.tolerance,
                "same_target": found.target == target_of(job.recipe),
            }
        )
    return judged


def _asked(goal: Goal, plan: PruningPlan) -> float:
    if goal.kind in ("macs", "params"):
        return float(goal.asked(getattr(plan.before, goal.kind)))
    return float(goal.reach or 0)


def _value(goal: Goal, job: Job, found: Validated, plan: PruningPlan) -> float | None:
    """The figure of the pruned model; None where only planning can count it."""
    if goal.kind in ("macs", "params"):
        return float(getattr(plan.after, goal.kind))
    timed = timed_figure(goal, found.latency, found.target.batch)
    if timed is not None:
        return timed
    if goal.kind == "memory_bytes":
        return float(found.memory_bytes)
    if goal.kind == "size_bytes":
        if RUNTIMES[found.target.runtime].takes == "file":
            return float(file_size(found.file))
        return float(stored_bytes(None, found.models["pruned"]))
    if goal.kind == "quality_drop":
        dense, pruned = found.models["dense"], found.models["pruned"]
        loss = calibration_loss(job, groups_of(dense, job.workload))
        return loss(pruned) - loss(dense)
    return None
