"""What is left, updated in closed form after units or weights went, from calibration inputs; no training."""

from prunekit.reconstruct.greedy import Removals as Removals
from prunekit.reconstruct.greedy import remove_sets as remove_sets
from prunekit.reconstruct.greedy import remove_weights as remove_weights
from prunekit.reconstruct.least_squares import Solution as Solution
from prunekit.reconstruct.least_squares import least_squares as least_squares
from prunekit.reconstruct.least_squares import masked_least_squares as masked_least_squares
from prunekit.reconstruct.result import LayerChange as LayerChange
from prunekit.reconstruct.result import LeftAlone as LeftAlone
from prunekit.reconstruct.result import Reconstruction as Reconstruction
from prunekit.reconstruct.sparsegpt import Choice as Choice
from prunekit.reconstruct.sparsegpt import Sweep as Sweep
from prunekit.reconstruct.sparsegpt import Swept as Swept
from prunekit.reconstruct.sparsegpt import sparsegpt as sparsegpt
from prunekit.reconstruct.units import reconstruct as reconstruct
from prunekit.reconstruct.weights import reconstruct_weights as reconstruct_weights

__all__ = [
    "Choice",
    "LayerChange",
    "LeftAlone",
    "Reconstruction",
    "Removals",
    "Solution",
    "Sweep",
    "Swept",
    "least_squares",
    "masked_least_squares",
    "reconstruct",
    "reconstruct_weights",
    "remove_sets",
    "remove_weights",
    "sparsegpt",
]
