"""How much two operations have in common, by their sizes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from prunekit.measure.operation import Operation

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]


def place_of(operation: Operation) -> Vector:
    """The logarithms to base 2 of the sizes of the first two inputs and the output."""
    sizes = [size for shape in (*operation.inputs[:2], operation.output) for size in shape]
    return np.log2(np.maximum(sizes, 1).astype(np.float64))


def apart(one: Matrix, other: Matrix) -> Matrix:
    """Squared distances ``[places, others]`` between ``[places, sizes]`` and ``[others, sizes]``."""
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * one @ other.T
    return np.maximum(squares, 0.0)


def alike(distances: Matrix, doublings: float) -> Matrix:
    """How much what is at these squared distances has in common, in [0, 1].

    Args:
        distances: of :func:`apart`.
        doublings: how far apart sizes are that have little in common.
    """
    return np.exp(-distances / (2 * doublings**2))
