"""Masks on single weights that come and change while a model trains, or between its trainings."""

from prunekit.recover.masks.cycles import mask_in_cycles
from prunekit.recover.masks.gradual import GradualMasks
from prunekit.recover.masks.regrowth import REGROWTH, Regrowth

__all__ = ["REGROWTH", "GradualMasks", "Regrowth", "mask_in_cycles"]
