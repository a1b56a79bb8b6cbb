"""What a recipe is measured on, and what it asks for there."""

from __future__ import annotations

from prunekit.measure import Target
from prunekit.plan import Goal
from prunekit.recipe import Recipe


def target_of(recipe: Recipe) -> Target:
    """What the goals of a recipe are measured on."""
    section = recipe.target_or_default
    return Target(
        runtime=section.runtime,
        threads=section.threads,
        batch=section.batch,
        sequence=section.sequence,
        precision=section.precision,
    )


def validation_target(recipe: Recipe) -> Target:
    """What the result is validated on; the same but for what the recipe says otherwise."""
    settings, section = recipe.validation, recipe.target_or_default
    assert settings.runtime is not None
    assert settings.batch is not None
    assert settings.threads is not None
    assert settings.precision is not None
    return Target(
        runtime=settings.runtime,
        threads=settings.threads,
        batch=settings.batch,
        sequence=section.sequence,
        precision=settings.precision,
    )


def goals_of(recipe: Recipe) -> tuple[Goal, ...]:
    """The goals of the whole run."""
    return tuple(section.goal for section in recipe.goals)
