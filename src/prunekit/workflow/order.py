"""The order of the stages, and all that each of them depends on. No other place knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from prunekit.deploy.quantization import quantizer_version
from prunekit.recipe import Recipe
from prunekit.workflow.deciding import (
    name_of,
    run_baseline,
    run_plan,
    run_prune,
    run_score,
    weights_before,
)
from prunekit.workflow.delivering import run_evaluate, run_export, run_gate, run_validate
from prunekit.workflow.job import Stage
from prunekit.workflow.models import UNSOUND
from prunekit.workflow.reaching import COSTS, REACHED, TIMES, run_reach, run_target
from prunekit.workflow.recovering import SPENT, run_recover
from prunekit.workflow.shipping import EXPORTS, INT8

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
        *(_by_target(recipe, cycle) if recipe.by_target else [_by_counting(recipe, cycle)]),
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


def _by_counting(recipe: Recipe, cycle: int) -> Stage:
    name = name_of(cycle)
    earlier = (f"{name_of(cycle - 1)}/plan/plan.json",) if cycle > 1 else ()
    return Stage(
        f"{name}/plan",
        run_plan(cycle),
        settings=_settings(recipe, "goal", "schedule", "groups", "importance.criterion"),
        reads=(f"{name}/score/scores.safetensors", f"baseline/{UNSOUND}", *earlier),
        data=("calibration",),
    )


def _by_target(recipe: Recipe, cycle: int) -> list[Stage]:
    """What plans cost is measured apart from planning, so that another goal needs no new measurement."""
    name, before = name_of(cycle), name_of(cycle - 1)
    model = (weights_before(cycle), f"{name}/score/scores.safetensors", f"baseline/{UNSOUND}")
    earlier = (f"{before}/plan/plan.json",) if cycle > 1 else ()
    measured = {
        **_settings(recipe, "seed", "threads", "groups"),
        **_settings(recipe, *(f"importance.{key}" for key in ("criterion", "batch_size", "examples"))),
        "target": recipe.target_or_default.model_dump(mode="json"),
    }
    return [
        Stage(
            f"{name}/target",
            run_target(cycle),
            settings=measured,
            reads=(*model, *earlier, *((f"{before}/target/{TIMES}",) if cycle > 1 else ())),
            data=("calibration",),
        ),
        Stage(
            f"{name}/plan",
            run_reach(cycle),
            settings={**measured, **_settings(recipe, "goal", "schedule")},
            reads=(
                *(*model, *earlier, *((f"{before}/plan/{REACHED}",) if cycle > 1 else ())),
                *(f"{name}/target/{file}" for file in (COSTS, TIMES)),
            ),
            data=("calibration",),
        ),
    ]


def _delivery(recipe: Recipe) -> list[Stage]:
    last = recipe.schedule.cycles
    models = (PARENT, f"{name_of(last)}/plan/plan.json", weights_before(last + 1))
    int8 = tuple(f"export/{name}{INT8}.onnx" for name in ("dense", "pruned") if recipe.ships_int8)
    exported = ("export/dense.onnx", "export/pruned.onnx", *int8, f"export/{EXPORTS}")
    served = {key: getattr(recipe.validation, key) for key in ("runtime", "threads", "precision")}
    return [
        Stage(
            "export",
            run_export,
            settings={
                **_settings(recipe, "seed", "threads", "export.opset"),
                **(_quantizing(recipe) if int8 else {}),
            },
            reads=models,
            data=("calibration",),
        ),
        Stage(
            "validate",
            run_validate,
            settings={
                **_settings(recipe, "seed", "threads"),
                "validate": recipe.validation.model_dump(mode="json"),
                **(_asked(recipe) if recipe.by_target or recipe.target else {}),
            },
            reads=(*models, *exported, *((f"{name_of(last)}/plan/{REACHED}",) if recipe.by_target else ())),
            data=("calibration",),
        ),
        Stage(
            "evaluate",
            run_evaluate,
            settings={
                **_settings(recipe, "seed", "threads", "evaluate"),
                **({"served": served} if int8 else {}),
            },
            reads=(*models, *(exported if int8 else ())),
            data=("calibration", "test"),
        ),
        Stage(
            "gate",
            run_gate,
            settings={"gates": [{type(gate).__name__: asdict(gate)} for gate in recipe.gates]},
            reads=("evaluate/result.json", "validate/result.json"),
        ),
    ]


def _asked(recipe: Recipe) -> Mapping[str, object]:
    """What validation holds the result against, and how it times."""
    return {
        **_settings(recipe, "goal", "importance"),
        "target": recipe.target_or_default.model_dump(mode="json"),
    }


def _quantizing(recipe: Recipe) -> Mapping[str, object]:
    """What decides an export in int8, beside the model and the calibration split."""
    return {**_settings(recipe, "export.calibration"), "quantizer": quantizer_version()}


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
