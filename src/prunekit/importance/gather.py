"""Bringing the values of one slice into rows, one row per unit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor, from_numpy, view_as_real

from prunekit.errors import ShapeError
from prunekit.types import BoolArray, Group, IntArray, Slice


def unit_ids(part: Slice, group: Group) -> IntArray:
    """Say which unit of the group each row of a slice belongs to.

    ``ids[i] = units[i]``, and where blocks lie along a second dimension
    ``ids[b * len(units) + i] = block_of[b] * units_per_block + units[i]``.

    Args:
        part: a slice of the group.
        group: the group whose units are counted.

    Returns:
        ``[rows]`` int64 in ``[0, group.size)``; -1 = none of this group's.
    """
    if part.block_of is None:
        return part.units
    block = part.block_of[:, None]
    ids = block * group.units_per_block + part.units[None, :]
    return np.where((block >= 0) & (part.units[None, :] >= 0), ids, -1).ravel()


def has_unit(part: Slice, group: Group) -> BoolArray:
    """Say which units of the group have at least one index in a slice.

    Returns:
        ``[units]`` bool.
    """
    ids = unit_ids(part, group)
    return np.bincount(ids[ids >= 0], minlength=group.size) > 0


def gather(tensor: Tensor, part: Slice, group: Group) -> Tensor:
    """Gather a tensor into one row per unit.

    A unit that several indices belong to (a channel whose feature map was flattened) gets all of their
    values; where units have unequal numbers of values the shorter rows are padded with zeros, which
    changes neither a norm nor a sum. A complex number becomes two values, its real and its imaginary part.
    Torch's gradient of a complex ``w`` is ``dL/d re(w) + i dL/d im(w)``, so that products of the two tensors'
    rows add up to ``re(conj(gradient) * w)``, the first-order change of the loss.

    Args:
        tensor: the tensor that ``part`` names, or its gradient; any float or complex dtype.
        part: the slice to gather along.
        group: the group whose units are the rows.

    Returns:
        ``[units, k]``, the real dtype and the device of ``tensor``; a view of it where that is possible.

    Raises:
        ShapeError: the tensor does not have the shape that the slice describes.
    """
    _check_shape(tensor, part)
    if part.block_dim is None:
        rows = tensor.movedim(part.dim, 0).flatten(1) if tensor.ndim > 1 else tensor[:, None]
    else:
        rows = tensor.movedim((part.block_dim, part.dim), (0, 1)).flatten(0, 1)
        rows = rows.flatten(1) if rows.ndim > 1 else rows[:, None]
    if rows.is_complex():
        rows = view_as_real(rows.resolve_conj()).flatten(1)
    ids = unit_ids(part, group)
    if np.array_equal(ids, np.arange(group.size)):
        return rows
    order = np.argsort(ids, kind="stable")[np.count_nonzero(ids < 0) :]
    unit = ids[order]
    counts = np.bincount(unit, minlength=group.size)
    place = np.arange(len(unit)) - (np.cumsum(counts) - counts)[unit]
    padded = rows.new_zeros((group.size, int(counts.max(initial=0)), rows.shape[1]))
    padded[from_numpy(unit).to(rows.device), from_numpy(place).to(rows.device)] = rows[
        from_numpy(order).to(rows.device)
    ]
    return padded.flatten(1)


def gather_present(tensor: Tensor, part: Slice, group: Group) -> tuple[Tensor, BoolArray]:
    """Gather a tensor into one row per unit that has an index in it.

    Of layers, each of which has tensors of its own, that is one row instead of one per layer.

    Args:
        tensor: the tensor that ``part`` names, or its gradient.
        part: the slice to gather along.
        group: the group whose units are the rows.

    Returns:
        ``[present units, k]`` as of :func:`gather`, and ``[units]`` bool, which units those are.

    Raises:
        ShapeError: the tensor does not have the shape that the slice describes.
    """
    present = has_unit(part, group)
    if present.all() or part.block_dim is not None:
        rows = gather(tensor, part, group)
        return rows if present.all() else rows[from_numpy(present).to(rows.device)], present
    number = np.where(present, np.cumsum(present) - 1, -1)
    units = np.where(part.units >= 0, number[part.units], -1)
    fewer = replace(group, size=int(present.sum()), blocks=1)
    return gather(tensor, replace(part, units=units), fewer), present


def _check_shape(tensor: Tensor, part: Slice) -> None:
    lengths = {part.dim: len(part.units)}
    if part.block_dim is not None and part.block_of is not None:
        lengths[part.block_dim] = len(part.block_of)
    if any(dim >= tensor.ndim or tensor.shape[dim] != length for dim, length in lengths.items()):
        described = ", ".join(f"{length} in dimension {dim}" for dim, length in lengths.items())
        raise ShapeError(
            f"The tensor has the shape {tuple(tensor.shape)}",
            expected=described,
            where=part.tensor,
            remedy="The groups were found on another model; find them again on this one",
        )
