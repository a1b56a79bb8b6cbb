"""The dense and the pruned model from what earlier stages left in files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.torch import save
from torch import nn

from prunekit.errors import SelectionError
from prunekit.graph import Groups, find_groups, trace
from prunekit.plan import PruningPlan
from prunekit.ranks import whole
from prunekit.recipe import Recipe
from prunekit.surgery import remove
from prunekit.types import Frozen, Group, Slice
from prunekit.workflow.job import Job, Result
from prunekit.workload import DecidingWorkload, build_architecture, load_weights, predict

BATCH_SIZE = 256
"""Validation examples per call; without influence on the result."""

UNSOUND = "unsound.json"
"""Groups that broke the permutation law on the parent, with the reason; they count as frozen."""


def build(job: Job) -> nn.Module:
    """The dense architecture under the recipe's seed, in evaluation mode."""
    return build_under(job.recipe.seed, job.workload)


def build_under(seed: int, workload: DecidingWorkload) -> nn.Module:
    """The dense architecture under a seed, in evaluation mode.

    Raises:
        WorkloadError: ``build()`` gives something else than a module.
    """
    return build_architecture(workload, seed=seed).eval()


def dense_model(job: Job) -> nn.Module:
    """The dense parent with the weights that the baseline stage left."""
    model = build(job)
    load_weights(model, job.files["baseline/weights.safetensors"])
    return model


def pruned_model(job: Job, plan: PruningPlan | None, weights: Path) -> nn.Module:
    """The model that a plan for the parent gives, with its own weights; no plan gives the parent."""
    model = build(job)
    if plan is not None:
        model = remove(model, plan, groups_of(model, job.workload)).model.eval()
    load_weights(model, weights)
    return model


def groups_of(model: nn.Module, workload: DecidingWorkload) -> Groups:
    """Every group of a model, found with calibration examples."""
    example = workload.example_inputs()
    return find_groups(trace(model, example.args, dict(example.kwargs)))


def prunable_groups(job: Job) -> Groups:
    """The groups of the parent that may be pruned: sound, and chosen by the recipe."""
    found = groups_of(build(job), job.workload)
    unsound: dict[str, dict[str, str]] = json.loads(job.files[f"baseline/{UNSOUND}"].read_text())
    for law, reasons in unsound.items():
        found = found.freeze(reasons, operator=law)
    return select(job.recipe, found)


def select(recipe: Recipe, groups: Groups) -> Groups:
    """The groups that the recipe chooses."""
    chosen = recipe.groups
    selected = groups.select(granularity=chosen.kinds, only=chosen.only, ignore=chosen.ignore)
    if recipe.schedule.cycles > 1 and any(group.is_depth for group in selected):
        raise SelectionError(
            f"Layers or branches are to go in {recipe.schedule.cycles} cycles",
            expected="one cycle where layers or branches go: those that are left are numbered anew",
            where="granularity",
            remedy="Set schedule.cycles to 1, or prune widths in one run and layers in another",
        )
    return selected


def read_plan(path: Path) -> PruningPlan:
    """A plan as a plan stage wrote it."""
    return PruningPlan.from_json(path.read_text())


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state of a model; tied tensors are written under each of their names.

    Of a model that is spread over processes, all of them call this, and each writes the whole.
    """
    state = {
        name: whole(tensor.detach()).cpu().contiguous().clone() for name, tensor in model.state_dict().items()
    }
    path.write_bytes(save(state))


def quality(model: nn.Module, job: Job) -> Result:
    """The quality on validation data, as ``{split, metric, n, value}``."""
    split = job.workload.splits.validation
    table = predict(model, split, job.workload, batch_size=BATCH_SIZE)
    metric = job.workload.metric
    return {
        "split": "validation",
        "metric": metric,
        "n": len(table),
        "value": float(table[metric].astype("float64").mean()),
    }


def shapes_of(model: nn.Module) -> Result:
    """The shape of every parameter and buffer, module by module in the model's order."""
    return {
        f"{prefix}.{name}".removeprefix("."): list(tensor.shape)
        for prefix, module in model.named_modules()
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }


def describe(groups: Iterable[Group], frozen: Iterable[Frozen]) -> Result:
    """What can be pruned, and what cannot and why, with the slices that each touches."""
    return {
        "groups": [
            {
                "name": group.name,
                "granularity": group.granularity.value,
                "size": group.size,
                "blocks": group.blocks,
                "tensors": list(group.tensors),
                "mask_equivalent": group.mask_equivalent,
                "slices": [_slice(part) for part in group.slices],
            }
            for group in groups
        ],
        "frozen": [
            {
                "name": item.name,
                "size": item.size,
                "operator": item.operator,
                "reason": item.reason,
                "source": item.source,
                "slices": [_slice(part) for part in item.slices],
            }
            for item in frozen
        ],
    }


def _slice(part: Slice) -> Result:
    return {
        "tensor": part.tensor,
        "dim": part.dim,
        "role": part.role,
        "indices": int(np.count_nonzero(part.units >= 0)),
    }
