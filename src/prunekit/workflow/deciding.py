"""The stages that decide and train: baseline, score, plan, prune, recover. None of them can see test data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import numpy as np
from safetensors.numpy import load_file, save

from prunekit.errors import GoalError, ProofError
from prunekit.files import content_digest
from prunekit.importance import Statistics, check_fit, collect, needs_of, score
from prunekit.plan import Goal, Limits, PrunableGroups, PruningPlan, allocate
from prunekit.plan.cycles import Continued, continued_scores, goal_of_cycle, joined, step
from prunekit.recipe import Recipe
from prunekit.recover import UNITS, Trained, TrainingRecord, TrainingSettings, shares, train
from prunekit.surgery import remove, sound, verify
from prunekit.types import Scores
from prunekit.workflow.job import Job, Result
from prunekit.workflow.models import (
    UNSOUND,
    build,
    build_under,
    describe,
    groups_of,
    prunable_groups,
    pruned_model,
    quality,
    read_plan,
    save_weights,
    select,
    shapes_of,
)
from prunekit.workflow.recovering import SPENT, checkpoints_of
from prunekit.workload import Batch, DecidingWorkload, Split, load_weights

FAR = 0.2
"""Relative tolerance with which a goal is checked before scores are known."""


def run_baseline(job: Job) -> Result:
    """Make the dense parent, judge it on validation data, and find what can be pruned."""
    model = build(job)
    training: TrainingRecord | None = None
    if job.checkpoint is not None:
        load_weights(model, job.checkpoint)
    else:
        training = train(
            model,
            job.workload,
            _parent_settings(job),
            checkpoints=checkpoints_of(job, job.recipe.parent.checkpoint_seconds),
            ranks=job.ranks,
            progress=job.progress,
        )
    model.eval()
    found = groups_of(model, job.workload)
    groups = sound(model, found, seed=job.seed)
    unsound: dict[str, dict[str, str]] = {}
    for item in groups.frozen:
        if item.name in found:
            unsound.setdefault(item.operator, {})[item.name] = item.reason
    save_weights(model, job.out / "weights.safetensors")
    (job.out / UNSOUND).write_text(json.dumps(unsound, sort_keys=True))
    (job.out / SPENT).write_text(json.dumps(_spent(job, training)))
    return {
        "quality": quality(model, job),
        "cost": asdict(groups.cost()),
        "training": asdict(training) if training else None,
        "tensors": shapes_of(model),
        **describe(groups, groups.frozen),
    }


def run_score(cycle: int) -> Callable[[Job], Result]:
    """Score the units of the model that the cycle before left."""

    def run(job: Job) -> Result:
        settings = job.recipe.importance
        before = plan_before(job, cycle)
        model = pruned_model(job, before, job.files[weights_before(cycle)])
        chosen = {group.name for group in prunable_groups(job)}
        found = groups_of(model, job.workload)
        left_out = {group.name: "it is not chosen" for group in found if group.name not in chosen}
        groups = found.freeze(left_out, operator="selection")
        check_fit(model, groups, settings.criterion, settings.fallback)
        stats: Statistics | None = None
        needs = needs_of(settings.criterion, settings.fallback)
        if needs:
            batches = _calibration_batches(job, job.workload.splits.calibration)
            stats = collect(
                model, batches, groups=groups, needs=needs, loss=job.workload.loss, ranks=job.ranks
            )
        scores = score(
            model,
            groups,
            settings.criterion,
            stats=stats,
            reduction=settings.reduction,
            normalization=settings.normalization,
            fallback=settings.fallback,
            seed=job.seed,
        )
        content = save(dict(scores))
        job.ranks.check_same(content_digest(content), "the scores")
        (job.out / "scores.safetensors").write_bytes(content)
        return {
            "criterion": settings.criterion,
            "reduction": settings.reduction,
            "normalization": settings.normalization,
            "groups": {
                name: dict(
                    zip(("min", "median", "max"), np.quantile(values, [0, 0.5, 1]).tolist(), strict=True)
                )
                for name, values in scores.items()
            },
        }

    return run


def run_plan(cycle: int) -> Callable[[Job], Result]:
    """Decide which units of the parent are gone after this cycle."""

    def run(job: Job) -> Result:
        recipe = job.recipe
        before = plan_before(job, cycle)
        groups = prunable_groups(job)
        asked = _asked(recipe)
        dense = groups.cost()
        share = shares(recipe.schedule.curve, recipe.schedule.cycles)[cycle - 1]
        goal = goal_of_cycle(asked, share, dense)
        continued = Continued(groups, before)
        scores = continued_scores(
            groups, load_file(job.files[f"{name_of(cycle)}/score/scores.safetensors"]), before
        )
        try:
            plan = _allocate(recipe, continued, scores, goal)
        except GoalError:  # the share of a cycle before the last may be less than one unit of any group
            if share == 1 or goal.remove is None:
                raise
            plan = _allocate(recipe, continued, scores, replace(goal, remove=0.0))
        plan = joined(plan, continued)
        (job.out / "plan.json").write_text(plan.to_json())
        return {
            "goal": asdict(asked),
            "scope": plan.scope,
            "target_remove": _removed_by(goal, plan),
            "before": asdict(plan.before),
            "after": asdict(plan.after),
            "widths": plan.widths,
            "digest": plan.digest,
        }

    return run


def check_goal(recipe: Recipe, workload: DecidingWorkload) -> None:
    """Find out before anything is trained whether the model can be traced and the goal is within reach.

    Scores are not known yet, so only a goal that is far out of reach is refused here; whether single units
    are too coarse for the tolerance shows when it is planned.

    Raises:
        TraceError: the model cannot be traced.
        SelectionError: a pattern of the recipe matches nothing.
        GoalError: even the most that the limits allow does not come near the goal.
    """
    groups = select(recipe, groups_of(build_under(recipe.seed, workload), workload))
    scores = {group.name: np.ones(group.size, dtype=np.float32) for group in groups}
    asked = _asked(recipe)
    try:
        _allocate(recipe, groups, scores, replace(asked, tolerance=max(asked.tolerance, FAR)))
    except GoalError:
        _allocate(recipe, groups, scores, asked)
        raise


def _asked(recipe: Recipe) -> Goal:
    """The goal of the whole run."""
    return Goal(**recipe.goal.model_dump(exclude={"scope"}))


def _allocate(recipe: Recipe, groups: PrunableGroups, scores: Scores, goal: Goal) -> PruningPlan:
    return allocate(
        groups,
        scores,
        goal,
        scope=recipe.goal.scope,
        criterion=recipe.importance.criterion,
        limits=Limits(recipe.groups.min_units, recipe.groups.max_sparsity, recipe.groups.round_to),
        per_group={
            pattern: Limits(**limits.model_dump()) for pattern, limits in recipe.groups.per_group.items()
        },
    )


def run_prune(cycle: int) -> Callable[[Job], Result]:
    """Remove the units, and prove that the smaller model is the one the plan describes."""

    def run(job: Job) -> Result:
        before = plan_before(job, cycle)
        after = read_plan(job.files[f"{name_of(cycle)}/plan/plan.json"])
        model = pruned_model(job, before, job.files[weights_before(cycle)])
        groups = groups_of(model, job.workload)
        plan = step(before, after, groups)
        removal = remove(model, plan, groups)
        proof = verify(model, removal.model, plan, groups, seed=job.seed)
        if not proof.passed:
            raise ProofError(
                f"The pruned model breaks a law: {' '.join(str(proof).split())}",
                remedy="Leave the groups named here out with groups.ignore, and please report it",
            )
        save_weights(removal.model, job.out / "weights.safetensors")
        return {
            "form": removal.form,
            "form_reason": removal.reason,
            "form_error": removal.form_error,
            "proof": {"passed": proof.passed, **asdict(proof)},
            "quality": quality(removal.model, job),
        }

    return run


def name_of(cycle: int) -> str:
    """The directory of a cycle, counted from 1."""
    return f"cycle-{cycle:02}"


def weights_before(cycle: int) -> str:
    """The file with the weights that a cycle starts from."""
    return (
        f"{name_of(cycle - 1)}/recover/weights.safetensors" if cycle > 1 else "baseline/weights.safetensors"
    )


def plan_before(job: Job, cycle: int) -> PruningPlan | None:
    """What is gone when a cycle starts."""
    return read_plan(job.files[f"{name_of(cycle - 1)}/plan/plan.json"]) if cycle > 1 else None


def _parent_settings(job: Job) -> TrainingSettings:
    """The workload's training settings, those of the recipe before them."""
    own = dict(getattr(job.workload, "train_settings", None) or {})
    parent = job.recipe.parent
    given = {
        name: value for name, value in parent.settings.items() if not own or name in parent.model_fields_set
    }
    if any(given.get(unit) is not None for unit in UNITS):  # One budget takes the place of another.
        own = {name: value for name, value in own.items() if name not in UNITS}
    return TrainingSettings(**{**own, **given, "seed": job.seed})


def _spent(job: Job, training: TrainingRecord | None) -> Result:
    """What the recoveries have to know of the parent's training."""
    if training is None:
        return {"examples_seen": None, "trained": None}
    chosen = _parent_settings(job)
    loss = training.epochs[training.best].validation_loss
    trained = Trained(
        optimizer=chosen.optimizer,
        learning_rate=chosen.learning_rate,
        loss=loss,
        weight_decay=chosen.weight_decay,
    )
    return {"examples_seen": training.examples_seen, "trained": asdict(trained)}


def _calibration_batches(job: Job, split: Split) -> Iterator[Batch]:
    size = job.recipe.importance.batch_size
    order = split.order()[: job.recipe.importance.examples]
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    batches = batches[job.ranks.rank :: job.ranks.size]
    for done, indices in enumerate(batches, start=1):
        yield split.batch(indices)
        job.progress(done, len(batches))


def _removed_by(goal: Goal, plan: PruningPlan) -> float:
    """The fraction a goal asks to remove of the parent."""
    if goal.remove is not None:
        return goal.remove
    assert goal.reach is not None
    figure = plan.before.macs if goal.kind == "macs" else plan.before.params
    return 1 - goal.reach / figure
