"""The recipe: what a run is told, as frozen, checked settings."""

from prunekit.recipe.load import Places as Places
from prunekit.recipe.load import load_recipe as load_recipe
from prunekit.recipe.sections import Recipe as Recipe

__all__ = ["Places", "Recipe", "load_recipe"]
