"""The stages of a measured goal: what plans cost on the target is measured, then the goal is reached."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.numpy import load_file
from torch import nn

from prunekit.errors import MeasurementError
from prunekit.graph import Groups
from prunekit.measure import check_target, environment
from prunekit.plan import Goal, Limits, PruningPlan
from prunekit.plan.limits import allowed_counts, limits_by_group
from prunekit.recipe import Recipe
from prunekit.recover import shares
from prunekit.targeting import (
    Planner,
    Reached,
    Space,
    Timing,
    dense_figures,
    goals_of_cycle,
    measure_target,
    restore_planner,
    stored_planner,
)
from prunekit.targeting.identity import timing_digest
from prunekit.targeting.operator_times import load_operator_times
from prunekit.targeting.rig import rig_for
from prunekit.targeting.space import NARROWEST
from prunekit.types import Scores
from prunekit.workflow.attempts import record_of
from prunekit.workflow.deciding import name_of, plan_before, weights_before
from prunekit.workflow.job import Job, Result
from prunekit.workflow.models import build_under, groups_of, prunable_groups, pruned_model, select
from prunekit.workflow.rundir import write_json
from prunekit.workflow.targets import goals_of, target_of
from prunekit.workload import DecidingWorkload, evaluating

COSTS, TIMES, REACHED = "costs.json", "operator_times.json", "reached.json"
"""What measuring leaves behind: all but the times of operations, these, and what a plan has reached."""

PHASES = ("widths", "operations", "whole models", "losses")
STEPS = 1000
"""Steps of the progress of one phase."""


def check_targeted(recipe: Recipe, workload: DecidingWorkload) -> None:
    """Find out before anything is trained whether the model can be traced, pruned and fed as the target asks.

    Whether the goal is within reach shows only when the target was measured.

    Raises:
        TraceError: the model cannot be traced.
        SelectionError: a pattern or a limit of the recipe cannot be.
        MeasurementError: this machine does not have the target, or the model does not take its batch.
    """
    everything = groups_of(build_under(recipe.seed, workload), workload)
    chosen = select(recipe, everything)
    _limits_left(recipe, chosen, chosen)
    with TemporaryDirectory() as folder:
        rig_for(everything.graph, target_of(recipe), Path(folder))


def run_target(cycle: int) -> Callable[[Job], Result]:
    """Measure what plans cost on the target and what groups would be missed, on the model as it is now."""

    def run(job: Job) -> Result:
        section, target = job.recipe.target_or_default, target_of(job.recipe)
        scores = _scores(job, cycle)
        model, groups = _model_now(job, cycle, scores)
        digest = timing_digest(target, real_time=section.real_time)
        kept = job.unfinished / "tables"
        earlier = job.files.get(f"{name_of(cycle - 1)}/target/{TIMES}")
        if earlier is not None:
            take_over(earlier, kept / f"{digest}.json", digest)
        with TemporaryDirectory() as folder:
            planner = measure_target(
                model,
                target=target,
                space=Space(
                    tuple(sorted(job.recipe.groups.kinds)),
                    limits=Limits(max_sparsity=1.0),
                    per_group=_limits_left(job.recipe, prunable_groups(job), groups),
                    most_levels=section.most_levels,
                ),
                loss=calibration_loss(job, groups) if section.sensitivities else None,
                scores=scores,
                criterion=job.recipe.importance.criterion,
                timing=Timing(
                    real_time=section.real_time,
                    variants=section.variants,
                    seconds=section.seconds,
                    folder=folder,
                    tables=kept,
                ),
                groups=groups,
                progress=lambda phase, done, of: job.progress(*_overall(phase, done, of)),
            )
        job.progress(STEPS * len(PHASES), STEPS * len(PHASES))
        shutil.copy(kept / f"{digest}.json", job.out / TIMES)
        write_json(job.out / COSTS, stored_planner(planner))
        return _measured(planner, job)

    return run


def run_reach(cycle: int) -> Callable[[Job], Result]:
    """Choose, export, measure and correct until the goal of this cycle is met on the target."""

    def run(job: Job) -> Result:
        recipe, before = job.recipe, plan_before(job, cycle)
        goals = goals_of(recipe)
        with TemporaryDirectory() as folder:
            planner = _restored(job, cycle, Path(folder))
            done = _read(job, f"{name_of(cycle - 1)}/plan/{REACHED}") if cycle > 1 else {}
            speedup = float(done.get("speedup", 1.0))
            dense = done["dense"] if done else dense_figures(goals, planner)
            on_curve = (0.0, *shares(recipe.schedule.curve, recipe.schedule.cycles))
            share, earlier = on_curve[cycle], on_curve[cycle - 1]
            cost = planner.groups.cost()
            asked = goals_of_cycle(
                goals, share, earlier, dense, {"macs": cost.macs, "params": cost.params}, speedup
            )
            reached = planner.reach(asked)
            attempts = record_of(planner, asked, reached)
        plan = before.then(reached.plan) if before is not None else reached.plan
        (job.out / "plan.json").write_text(plan.to_json())
        faster = speedup * reached.comparison.speedup.median
        planned = [_of_parent(goal, plan, reached, faster) for goal in asked]
        write_json(job.out / REACHED, {"speedup": faster, "dense": dense, "planned": planned})
        return {
            "goal": asdict(goals[0]),
            "goals": [{**asdict(goal), "words": str(goal)} for goal in goals],
            "scope": plan.scope,
            "target_remove": share * (1 - 1 / (goals[0].reach or 1)) if goals[0].kind == "speedup" else None,
            "before": asdict(plan.before),
            "after": asdict(plan.after),
            "widths": plan.widths,
            "digest": plan.digest,
            "speedup_before": speedup,
            "speedup_after": faster,
            "planned": planned,
            **attempts,
        }

    return run


def take_over(earlier: Path, table: Path, target: str) -> None:
    """Begin a table with the times of an earlier cycle, unless it is there or they are of another target.

    Args:
        earlier: times of operations, as an earlier cycle left them; maybe on another machine.
        table: where the times of this target are kept.
        target: its digest, with its machine and way of timing.
    """
    if not table.exists() and json.loads(earlier.read_text()).get("target") == target:
        table.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(earlier, table)


def calibration_loss(job: Job, groups: Groups) -> Callable[[nn.Module], float]:
    """The workload's mean loss of a model over the calibration examples, the same ones every time.

    Args:
        job: of the stage.
        groups: of the model; where it takes one batch size only, an incomplete batch is left out.
    """
    split, settings = job.workload.splits.calibration, job.recipe.importance
    graph = groups.graph
    size = settings.batch_size if graph.batch_is_open else graph.batch_size
    order = split.order()[: settings.examples]
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    if not graph.batch_is_open:
        parts = [part for part in parts if len(part) == size]

    def loss(model: nn.Module) -> float:
        total, examples = 0.0, 0
        with evaluating(model), torch.no_grad():
            for part in parts:
                batch = split.batch(part)
                found = job.workload.loss(model(*batch.args, **batch.kwargs), batch)
                total += float(found) * len(batch)
                examples += len(batch)
        return total / examples

    return loss


def _model_now(job: Job, cycle: int, scores: Scores) -> tuple[nn.Module, Groups]:
    """The model that a cycle starts from, with all its groups; those that are not chosen are frozen."""
    model = pruned_model(job, plan_before(job, cycle), job.files[weights_before(cycle)])
    chosen = {group.name for group in prunable_groups(job)} & set(scores)
    found = groups_of(model, job.workload)
    left_out = {group.name: "it is not chosen" for group in found if group.name not in chosen}
    return model, found.freeze(left_out, operator="selection")


def _scores(job: Job, cycle: int) -> Scores:
    return load_file(job.files[f"{name_of(cycle)}/score/scores.safetensors"])


def _restored(job: Job, cycle: int, folder: Path) -> Planner:
    """The planner of this cycle as its target stage left it.

    Raises:
        MeasurementError: it was measured on another machine, or timed in another way.
    """
    place, target = f"{name_of(cycle)}/target", target_of(job.recipe)
    check_target(target)
    section = job.recipe.target_or_default
    digest = timing_digest(target, real_time=section.real_time)
    content = _read(job, f"{place}/{COSTS}")
    if content["times"] != digest:
        raise MeasurementError(
            "The target was measured on another machine, with another version of its runtime, or with "
            "real-time scheduling where this process has none (or the other way round)",
            where=str(target),
            remedy=f"Remove stages/{place} from the run directory and run again: it is measured here then",
        )
    model, groups = _model_now(job, cycle, _scores(job, cycle))
    rig = rig_for(groups.graph, target, folder, real_time=section.real_time, seconds=section.seconds)
    times = load_operator_times(digest, job.files[f"{place}/{TIMES}"])
    return restore_planner(content, model, groups, rig, times)


def _limits_left(recipe: Recipe, parent: Groups, now: Groups) -> dict[str, Limits]:
    """What the limits of the recipe, which refer to the parent, leave to the groups of a smaller model."""
    section = recipe.groups
    general = Limits(
        section.min_units,
        NARROWEST.max_sparsity if section.max_sparsity is None else section.max_sparsity,
        section.round_to,
    )
    named = {pattern: Limits(**own.model_dump()) for pattern, own in section.per_group.items()}
    groups = tuple(parent)
    sizes = {group.name: group for group in now}
    found = {}
    for group, own in zip(groups, limits_by_group(groups, general, named), strict=True):
        left = sizes.get(group.name)
        if left is not None:
            least = int(allowed_counts(group, own)[-1]) * left.blocks
            found[escape(group.name)] = Limits(max(1, min(least, left.size)), None, own.round_to)
    return found


def _measured(planner: Planner, job: Job) -> Result:
    """What measuring the target found, for people."""
    costs, latency = planner.costs, planner.costs.latency
    sources: dict[str, int] = {}
    for curve in planner.curves:
        sources[curve.source] = sources.get(curve.source, 0) + 1
    errors: list[float | None] = list(latency.errors) or [None] * len(latency.models)
    return {
        "target": asdict(planner.rig.target),
        "words": str(planner.rig.target),
        "dense_ms": costs.dense_ms,
        "operations": len(latency.times.ms),
        "levers": {lever.name: (lever.kept * lever.group.blocks).tolist() for lever in costs.levers},
        "losses": sources,
        "models": [
            {"name": model.name, "ms": model.ms, "error": error}
            for model, error in zip(latency.models, errors, strict=True)
        ],
        "median_error": latency.median_error,
        "seconds": dict(costs.seconds),
        "environment": environment(job.recipe.target_or_default.threads),
    }


def _of_parent(goal: Goal, plan: PruningPlan, reached: Reached, faster: float) -> float:
    """What was reached of a goal of the cycle, as the goal of the run counts it."""
    if goal.kind == "speedup":
        return faster
    if goal.kind in ("macs", "params"):
        return float(getattr(plan.after, goal.kind))
    return float(reached.measured[str(goal)])


def _overall(phase: str, done: int, of: int) -> tuple[int, int]:
    """How far a phase is, as steps of the whole stage."""
    begun = STEPS * PHASES.index(phase)
    return begun + (STEPS * done // of if of else STEPS), STEPS * len(PHASES)


def _read(job: Job, place: str) -> dict[str, Any]:
    return json.loads(job.files[place].read_text())
