"""The stage that trains a pruned model, and what training in stages has in common."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import nn

from prunekit.graph import Groups
from prunekit.plan import PruningPlan
from prunekit.recipe import Recipe
from prunekit.recover import (
    UNITS,
    Checkpoints,
    Distillation,
    DistillationSettings,
    Lineage,
    Objective,
    Recalibrated,
    Trained,
    TrainingRecord,
    TrainingSettings,
    budget_in_epochs,
    recalibrate_norms,
    restart,
    shard_layers,
    task_of,
    train,
    training_batches,
    validate,
)
from prunekit.surgery import remove
from prunekit.workflow.job import Job, Result
from prunekit.workflow.models import dense_model, groups_of, pruned_model, quality, read_plan, save_weights
from prunekit.workload import load_weights

SPENT = "spent.json"
"""What training the parent took, without timings, so that a share of it can be budgeted, and how it was."""

EPOCHS = 5.0
"""The budget of all recoveries together where none is given."""

AT_ONCE = 64
"""Examples in one call of the parent that is remembered; without influence on the result."""


def run_recover(cycle: str) -> Callable[[Job], Result]:
    """Win quality back by training within the budget of this cycle.

    Args:
        cycle: its directory.
    """

    def run(job: Job) -> Result:
        plan = read_plan(job.files[f"{cycle}/plan/plan.json"])
        job.ranks.check_same(plan.digest, "the plan")
        chosen = job.recipe.recover
        model, objective = _student(job, plan, f"{cycle}/prune/weights.safetensors")
        recalibrated: Recalibrated | None = None
        if chosen.recalibrate:
            calibration = job.workload.splits.calibration
            batches = training_batches(calibration, chosen.batch_size, shuffle_seed=job.seed)
            recalibrated = recalibrate_norms(model, batches)
        baseline = json.loads(job.files[f"baseline/{SPENT}"].read_text())
        spent = baseline["examples_seen"]
        budget = _budget_of_a_cycle(job, spent)
        training: TrainingRecord | None = None
        begun: dict[str, Any] | None = None
        if budget != {"epochs": 0.0}:
            if chosen.shard and job.ranks.size > 1:
                shard_layers(model, job.ranks)
            begun = _restart(job, model, baseline.get("trained"))
            settings = TrainingSettings(
                **{**chosen.settings, **begun, **dict.fromkeys(UNITS), **budget}, seed=job.seed
            )
            training = train(
                model,
                job.workload,
                settings,
                objective=objective,
                checkpoints=checkpoints_of(job, chosen.checkpoint_seconds),
                ranks=job.ranks,
                progress=job.progress,
            )
        save_weights(model.eval(), job.out / "weights.safetensors")
        seen = training.examples_seen if training else 0
        return {
            "recalibrated": asdict(recalibrated) if recalibrated else None,
            "distilled": chosen.distill.settings if chosen.distill else None,
            "training": asdict(training) if training else None,
            "began_with": begun,
            "budget": {
                "asked": budget,
                "epochs": seen / len(job.workload.splits.train),
                "share_of_original": seen / spent if spent else None,
            },
            "quality": quality(model, job),
        }

    return run


def checkpoints_of(job: Job, seconds: float) -> Checkpoints:
    """Where a stage that trains writes down how to go on."""
    return Checkpoints(job.unfinished / "checkpoints", every_seconds=seconds)


def _restart(job: Job, model: nn.Module, trained: dict[str, Any] | None) -> dict[str, Any]:
    """Those of the recipe, or by the parent's training and what was lost."""
    chosen = job.recipe.recover

    def loss() -> float:
        return validate(model, task_of(job.workload), batch_size=chosen.batch_size, ranks=job.ranks)[0]

    return restart(
        Trained(**trained) if trained else None,
        loss,
        optimizer=chosen.optimizer,
        learning_rate=chosen.learning_rate,
        schedule=chosen.schedule,
        weight_decay=chosen.weight_decay,
        warmup=chosen.warmup,
    )


def _student(job: Job, plan: PruningPlan, weights: str) -> tuple[nn.Module, Objective | None]:
    """The pruned model with its weights, and what it is to learn from its parent."""
    chosen = job.recipe.recover.distill
    if chosen is None:
        return pruned_model(job, plan, job.files[weights]), None
    dense = dense_model(job)
    groups: Groups = groups_of(dense, job.workload)
    removal = remove(dense, plan, groups)
    student = removal.model.eval()
    load_weights(student, job.files[weights])
    objective = Distillation(
        dense,
        DistillationSettings(**chosen.settings),
        student=student,
        lineage=Lineage.of(removal, plan, groups),
        loss=job.workload.loss,
    )
    if chosen.remember:
        _remember(objective, job)
    return student, objective


def _remember(objective: Distillation, job: Job) -> None:
    """Run the parent over the training data, once for all processes, cycles and attempts."""
    with job.ranks.together("remembering what the parent gives"):
        if job.ranks.is_first:
            objective.remember(
                job.workload.splits.train,
                job.kept / "parent",
                batch_size=AT_ONCE,
                rebuild=True,  # What a killed run of an edited recipe left is of another parent.
                progress=job.progress,
            )
    if not job.ranks.is_first:
        objective.remember(job.workload.splits.train, job.kept / "parent", batch_size=AT_ONCE)


def _budget_of_a_cycle(job: Job, spent: int | None) -> dict[str, Any]:
    """An equal part of the budget of all cycles, as a field of the training settings."""
    recipe: Recipe = job.recipe
    recover, cycles = recipe.recover, recipe.schedule.cycles
    for unit in UNITS:
        amount = getattr(recover, unit)
        if amount is not None and unit not in ("epochs", "seconds"):
            return {unit: max(1, round(amount / cycles))}
        if amount is not None:
            return {unit: amount / cycles}
    if recover.share_of_original is None:
        return {"epochs": EPOCHS / cycles}
    whole = budget_in_epochs(
        train_examples=len(job.workload.splits.train),
        share_of_original=recover.share_of_original,
        original_examples_seen=spent,
    )
    return {"epochs": whole / cycles}
