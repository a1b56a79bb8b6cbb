"""Which key of the recipe an error is about: the rooms below know no recipe, so it is said here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prunekit.errors import (
    GoalError,
    MeasurementError,
    PrunekitError,
    RecipeError,
    SelectionError,
    ShapeError,
    TraceError,
    TrainingError,
    WorkloadError,
)
from prunekit.recipe import Places, Recipe

GOAL_KEYS = ("kind", "remove", "reach", "scope", "tolerance", "percentile")
LIMITS = ("granularity", "min_units", "max_sparsity", "round_to", "per_group")


@contextmanager
def blaming(places: Places, recipe: Recipe, stage: str = "") -> Iterator[None]:
    """Put the key and the line of the recipe before the place that an error names by itself.

    Args:
        places: of the keys in the recipe file.
        recipe: what the file says.
        stage: that is at work; "" before the first one.
    """
    try:
        yield
    except PrunekitError as error:
        key = "" if isinstance(error, RecipeError) else key_of(error, recipe, stage)
        if not key:
            raise
        raise _placed(
            error, places.of(key), own="" if error.where in _names_of(key) else error.where
        ) from error


def key_of(error: PrunekitError, recipe: Recipe, stage: str = "") -> str:
    """The key of the recipe that an error is about, such as ``groups.only.0``; "" if it is about none."""
    if stage.endswith("recover") and isinstance(error, TrainingError | SelectionError | ShapeError):
        return "recover.distill" if "distillation" in error.where else "recover"
    if isinstance(error, SelectionError):
        return _choice(error, recipe)
    if isinstance(error, GoalError):
        if len(recipe.goals) > 1:
            return "goal"
        asked = "reach" if recipe.goal.remove is None else "remove"
        return f"goal.{error.where if error.where in GOAL_KEYS else asked}"
    if isinstance(error, MeasurementError) and (not stage or stage.endswith(("/target", "/plan"))):
        return "target"
    if isinstance(error, WorkloadError):
        checkpoint = recipe.parent.checkpoint
        return "parent.checkpoint" if checkpoint and error.where.endswith(checkpoint) else "workload"
    if isinstance(error, TraceError):
        return "workload"
    if isinstance(error, TrainingError):
        return "parent"
    return ""


def _choice(error: SelectionError, recipe: Recipe) -> str:
    """The pattern or the limit that an error of selecting names."""
    for key in ("only", "ignore"):
        for number, pattern in enumerate(getattr(recipe.groups, key)):
            if repr(pattern) in error.given:
                return f"groups.{key}.{number}"
    if error.where in GOAL_KEYS:
        return f"goal.{error.where}"
    return f"groups.{error.where}" if error.where in LIMITS else "groups"


def _names_of(key: str) -> tuple[str, ...]:
    """Under which names a library room may have named the same thing."""
    return (key, *key.split("."))


def _placed(error: PrunekitError, place: str, *, own: str) -> PrunekitError:
    placed = type(error)(
        error.given,
        expected=error.expected,
        where=f"{place}: {own}" if own else place,
        remedy=error.remedy,
    )
    for note in getattr(error, "__notes__", []):
        placed.add_note(note)
    return placed
