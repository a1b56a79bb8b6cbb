"""Where the units of an axis lie in the dimensions of one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunekit.graph.atoms import Dim, Fixed
from prunekit.graph.axes import Structure, block_of
from prunekit.types import IntArray, Role, Slice


def units_at(structure: Structure, number: int, dims: Sequence[Dim]) -> IntArray | None:
    """``[*sizes]`` the unit of axis ``number`` at each index of dimensions of one tensor, -1 = none.

    None where the axis does not occur in them, or where its blocks lie along a dimension that is not among
    them.
    """
    axis = structure.axes[number]
    shape = tuple(dim.size if isinstance(dim, Fixed) else len(dim) for dim in dims)
    for position, dim in enumerate(dims):
        if isinstance(dim, Fixed) or not (structure.axis_of[structure.members(dim)] == number).any():
            continue
        inside, detached = structure.units(dim, number, axis)
        units = _along(inside, position, len(dims))
        if detached:
            blocks = _blocks_beside(structure, number, dims, position)
            if blocks is None:
                return None
            own = blocks * len(axis.roots) + units
            units = np.where((blocks >= 0) & (units >= 0), own, -1)
        return np.broadcast_to(units, shape)
    return None


def slice_at(
    structure: Structure, number: int, dims: Sequence[Dim], position: int, *, tensor: str, role: Role
) -> Slice:
    """Where axis ``number``, which runs along one dimension of a tensor, lies in it.

    Args:
        structure: of the axes.
        number: of the axis.
        dims: of the tensor.
        position: of the dimension.
        tensor: what the tensor is called.
        role: of the slice.
    """
    axis, dim = structure.axes[number], dims[position]
    assert not isinstance(dim, Fixed)
    units, detached = structure.units(dim, number, axis)
    company = structure.company(dim, number, axis)
    if not detached:
        return Slice(tensor, position, units, role, company=company)
    for other, beside in enumerate(dims):
        if other != position and not isinstance(beside, Fixed):
            blocks = block_of(structure.members(beside), axis.blocks)
            if (blocks >= 0).all():
                return Slice(tensor, position, units, role, other, blocks, company)
    raise AssertionError("an axis with blocks has them in every tensor")


def _blocks_beside(structure: Structure, number: int, dims: Sequence[Dim], position: int) -> IntArray | None:
    """The block that each index of another dimension lies in, shaped to go along with ``dims``."""
    for other, dim in enumerate(dims):
        if other != position and not isinstance(dim, Fixed):
            blocks = block_of(structure.members(dim), structure.axes[number].blocks)
            if (blocks >= 0).all():
                return _along(blocks, other, len(dims))
    return None


def _along(values: IntArray, position: int, count: int) -> IntArray:
    """``values`` as an array of ``count`` dimensions that runs along one of them."""
    return values.reshape([-1 if axis == position else 1 for axis in range(count)])
