"""What can be pruned in a workload's model, and what cannot and why, without training or pruning anything."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from prunekit.surgery import sound
from prunekit.types import WIDTHS, Cost, Frozen, Group
from prunekit.workflow.blame import blaming
from prunekit.workflow.determinism import deterministic
from prunekit.workflow.models import build_under, groups_of, select
from prunekit.workflow.source import open_workload, read_given
from prunekit.workload import deciding, load_workload

RECIPE_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Inspection:
    """What there is to prune.

    Attributes:
        name: of the workload.
        model: the class of its model.
        cost: of the dense model.
        groups: what can be pruned.
        frozen: what cannot, with the operator and the line that froze it.
    """

    name: str
    model: str
    cost: Cost
    groups: Sequence[Group]
    frozen: Sequence[Frozen]


def inspect_workload(path: Path) -> Inspection:
    """Look into the model of a recipe, with its choice of groups, or of a workload file.

    The model is built and not trained.

    Args:
        path: a recipe (``.yaml``) or a Python file with the function ``workload()``.

    Raises:
        RecipeError: the recipe cannot be used.
        WorkloadError: the workload cannot be used.
        SelectionError: a pattern of the recipe matches nothing.
        TraceError: the model cannot be traced.
    """
    given = read_given(path) if path.suffix in RECIPE_SUFFIXES else None
    recipe = given.recipe if given else None
    workload = deciding(open_workload(given) if given else load_workload(path))
    with (
        blaming(given.places, given.recipe) if given else nullcontext(),
        deterministic(recipe.threads if recipe else 1),
    ):
        model = build_under(recipe.seed if recipe else 0, workload)
        found = groups_of(model, workload)
        groups = sound(model, select(recipe, found) if recipe else found.select(granularity=WIDTHS))
    return Inspection(
        name=workload.name,
        model=type(model).__name__,
        cost=groups.cost(),
        groups=tuple(groups),
        frozen=groups.frozen,
    )
