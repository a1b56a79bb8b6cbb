"""What is left, updated in closed form after units or weights went, from calibration inputs; no training."""

from prunekit.reconstruction.greedy import RemovalOrder as RemovalOrder
from prunekit.reconstruction.greedy import remove_sets as remove_sets
from prunekit.reconstruction.greedy import remove_weights as remove_weights
from prunekit.reconstruction.least_squares import Solution as Solution
from prunekit.reconstruction.least_squares import least_squares as least_squares
from prunekit.reconstruction.least_squares import masked_least_squares as masked_least_squares
from prunekit.reconstruction.result import LayerChange as LayerChange
from prunekit.reconstruction.result import LeftAlone as LeftAlone
from prunekit.reconstruction.result import Reconstruction as Reconstruction
from prunekit.reconstruction.sparsegpt import Choice as Choice
from prunekit.reconstruction.sparsegpt import Sweep as Sweep
from prunekit.reconstruction.sparsegpt import Swept as Swept
from prunekit.reconstruction.sparsegpt import sparsegpt as sparsegpt
from prunekit.reconstruction.unit_order import removal_errors as removal_errors
from prunekit.reconstruction.units import reconstruct as reconstruct
from prunekit.reconstruction.weights import reconstruct_weights as reconstruct_weights

__all__ = [
    "Choice",
    "LayerChange",
    "LeftAlone",
    "Reconstruction",
    "RemovalOrder",
    "Solution",
    "Sweep",
    "Swept",
    "least_squares",
    "masked_least_squares",
    "reconstruct",
    "reconstruct_weights",
    "removal_errors",
    "remove_sets",
    "remove_weights",
    "sparsegpt",
]
