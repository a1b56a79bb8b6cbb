"""Weights with the zeros that pruning without removal leaves, in the patterns that hardware may know."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Weight = npt.NDArray[np.float32]

ZEROS = 0.9
"""Share of zeros in the patterns that leave it free."""
BLOCK = 16
"""Rows and columns of a block."""


def random_weight(shape: tuple[int, ...], seed: int = 0) -> Weight:
    """Normal values over the root of the first dimension, the fan-in, so that outputs stay near one."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return values / np.float32(np.sqrt(shape[0]))


def unstructured(weight: Weight) -> Weight:
    """The smallest 90 % of the values are zero, wherever they are."""
    magnitude = np.abs(weight)
    order = np.argsort(magnitude, axis=None, kind="stable")
    pruned = weight.copy()
    pruned.reshape(-1)[order[: round(ZEROS * weight.size)]] = 0
    return pruned


def two_of_four(weight: Weight) -> Weight:
    """Of each four values in a row along the first dimension the two smaller are zero.

    Args:
        weight: ``[fan_in, units]`` with ``fan_in`` a multiple of four.
    """
    fours = weight.reshape(-1, 4, weight.shape[1])
    order = np.argsort(np.abs(fours), axis=1, kind="stable")
    pruned = fours.copy()
    np.put_along_axis(pruned, order[:, :2], 0, axis=1)
    return pruned.reshape(weight.shape)


def blocks(weight: Weight) -> Weight:
    """Nine of ten blocks of 16 by 16 are zero, those with the smallest sums of squares.

    Args:
        weight: ``[fan_in, units]``, both multiples of 16.
    """
    rows, columns = (size // BLOCK for size in weight.shape)
    tiles = weight.reshape(rows, BLOCK, columns, BLOCK).copy()
    order = np.argsort((tiles**2).sum(axis=(1, 3)), axis=None, kind="stable")
    gone = np.unravel_index(order[: round(ZEROS * rows * columns)], (rows, columns))
    tiles[gone[0], :, gone[1], :] = 0
    return tiles.reshape(weight.shape)


PATTERNS: Mapping[str, Callable[[Weight], Weight]] = {
    "unstructured 90 %": unstructured,
    "2:4": two_of_four,
    "blocks 16x16, 90 %": blocks,
}
"""By their name in the record."""
