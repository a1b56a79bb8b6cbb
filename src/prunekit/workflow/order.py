"""The order of the stages, and all that each of them depends on. No other place knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from prunekit.recipe import Recipe
from prunekit.workflow.deciding import (
    name_of,
    run_baseline,
    run_plan,
    run_prune,
    run_score,
    weights_before,
)
from prunekit.workflow.delivering import EXPORTS, run_evaluate, run_export, run_gate, run_validate
from prunekit.workflow.job import Stage
from prunekit.workflow.models import UNSOUND
from prunekit.workflow.recovering import SPENT, run_recover

PARENT = "baseline/weights.safetensors"


def stages_of(recipe: Recipe) -> list[Stage]:
    """Every stage but the report, in order."""
    cycles = range(1, recipe.schedule.cycles + 1)
    return [
        Stage(
            "baseline",
            run_baseline,
            settings=_settings(recipe, "seed", "threads", "parent"),
            data=("train", "calibration", "validation"),
            by_all=True,
        ),
        *(stage for cycle in cycles for stage in _cycle(recipe, cycle)),
        *_delivery(recipe),
    ]


def _cycle(recipe: Recipe, cycle: int) -> list[Stage]:
    name = name_of(cycle)
    plan, unsound = f"{name}/plan/plan.json", f"baseline/{UNSOUND}"
    earlier = (f"{name_of(cycle - 1)}/plan/plan.json",) if cycle > 1 else ()
    scoring = ("criterion", "fallback", "reduction", "normalization", "batch_size", "examples")
    choosing = ("granularity", "only", "ignore")
    parent = (PARENT,) if recipe.recover.distill is not None else ()
    return [
        Stage(
            f"{name}/score",
            run_score(cycle),
            settings=_settings(
                recipe,
                *("seed", "threads"),
                *(f"importance.{key}" for key in scoring),
                *(f"groups.{key}" for key in choosing),
            ),
            reads=(weights_before(cycle), unsound, *earlier),
            data=("calibration",),
            by_all=True,
        ),
        Stage(
            f"{name}/plan",
            run_plan(cycle),
            settings=_settings(recipe, "goal", "schedule", "groups", "importance.criterion"),
            reads=(f"{name}/score/scores.safetensors", unsound, *earlier),
            data=("calibration",),
        ),
        Stage(
            f"{name}/prune",
            run_prune(cycle),
            settings=_settings(recipe, "seed", "threads"),
            reads=(weights_before(cycle), plan, *earlier),
            data=("calibration", "validation"),
        ),
        Stage(
            f"{name}/recover",
            run_recover(name),
            settings=_settings(recipe, "seed", "threads", "recover", "schedule.cycles"),
            reads=(f"{name}/prune/weights.safetensors", plan, f"baseline/{SPENT}", *parent),
            data=("train", "calibration", "validation"),
            by_all=True,
        ),
    ]


def _delivery(recipe: Recipe) -> list[Stage]:
    last = recipe.schedule.cycles
    models = (PARENT, f"{name_of(last)}/plan/plan.json", weights_before(last + 1))
    exported = ("export/dense.onnx", "export/pruned.onnx", f"export/{EXPORTS}")
    return [
        Stage(
            "export",
            run_export,
            settings=_settings(recipe, "seed", "threads", "export"),
            reads=models,
            data=("calibration",),
        ),
        Stage(
            "validate",
            run_validate,
            settings=_settings(recipe, "seed", "threads", "validate"),
            reads=(*models, *exported),
            data=("calibration",),
        ),
        Stage(
            "evaluate",
            run_evaluate,
            settings=_settings(recipe, "seed", "threads", "evaluate"),
            reads=models,
            data=("calibration", "test"),
        ),
        Stage(
            "gate",
            run_gate,
            settings={"gates": [{type(gate).__name__: asdict(gate)} for gate in recipe.gates]},
            reads=("evaluate/result.json", "validate/result.json"),
        ),
    ]


def _settings(recipe: Recipe, *places: str) -> Mapping[str, object]:
    """The values at these places of the recipe, defaults included."""
    content = recipe.model_dump(mode="json", by_alias=True, exclude={"gates"})
    settings: dict[str, object] = {}
    for place in places:
        value: object = content
        for key in place.split("."):
            assert isinstance(value, dict), place
            value = value[key]
        settings[place] = value
    return settings
