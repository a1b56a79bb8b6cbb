"""Narrowing tensors to the units a plan keeps, and zeroing the ones it removes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prunekit.graph import Groups
from prunekit.graph.atoms import Dim, Fixed
from prunekit.types import BoolArray, KeepMask


def touched(groups: Groups, keep: KeepMask) -> list[str]:
    """The tensors that lose something, in the order of the graph."""
    losing = {name for name, mask in keep.items() if not mask.all()}
    found = [name for group in groups.prunable if group.name in losing for name in group.tensors]
    return list(dict.fromkeys(found))


def narrow(groups: Groups, name: str, tensor: Tensor, keep: KeepMask) -> Tensor:
    """What is left of ``tensor``, shaped like the parameter or buffer ``name`` of the dense model.

    The same call narrows whatever runs along with a parameter: its momentum, its moving average.

    Args:
        groups: of the dense model.
        name: of the parameter, buffer or constant.
        tensor: of its dense shape.
        keep: by group name, ``[units]`` bool.
    """
    dims = groups.tensor_labels(name)
    for axis, dim in enumerate(dims):
        kept = kept_by_block(groups, dims, axis, keep)
        if kept is None or kept.all():
            continue
        if len(kept) == 1:
            index = torch.from_numpy(np.flatnonzero(kept[0])).to(tensor.device)
            tensor = tensor.index_select(axis, index)
        else:
            tensor = _gather(groups, dims, axis, dim, tensor, keep, kept)
    return tensor.contiguous()


def zero(groups: Groups, name: str, tensor: Tensor, keep: KeepMask) -> Tensor:
    """``tensor`` with everything that belongs to a removed unit set to zero."""
    dims = groups.tensor_labels(name)
    result = tensor.clone()
    for axis in range(len(dims)):
        kept = kept_by_block(groups, dims, axis, keep)
        if kept is None or kept.all():
            continue
        mask = torch.from_numpy(kept).to(tensor.device)
        if len(kept) == 1:
            shape = [-1 if other == axis else 1 for other in range(tensor.ndim)]
            result *= mask[0].reshape(shape).to(tensor.dtype)
        else:
            block_axis, block_of = _blocks(groups, dims, axis)
            rows = mask[torch.from_numpy(block_of).to(tensor.device)]
            if block_axis > axis:
                rows = rows.T
            shape = [size if other in (axis, block_axis) else 1 for other, size in enumerate(tensor.shape)]
            result *= rows.reshape(shape).to(tensor.dtype)
    return result


def kept_by_block(groups: Groups, dims: tuple[Dim, ...], axis: int, keep: KeepMask) -> BoolArray | None:
    """``[blocks, n]`` which indices stay; one row unless blocks lie along another dimension."""
    dim = dims[axis]
    if isinstance(dim, Fixed):
        return None
    found = [occurrence for occurrence in groups.occurrences(dim) if occurrence.group in keep]
    blocks = max((groups.whole(item.group).blocks for item in found if item.detached), default=1)
    kept = np.ones((blocks, len(dim)), dtype=np.bool_)
    for item in found:
        mask = keep[item.group].reshape(groups.whole(item.group).blocks if item.detached else 1, -1)
        kept &= np.where(item.units >= 0, mask[:, item.units], True)
    return kept


def _blocks(groups: Groups, dims: tuple[Dim, ...], axis: int) -> tuple[int, np.ndarray]:
    """Along which dimension the blocks of a detached group lie, and the block of each of its indices."""
    dim = dims[axis]
    assert not isinstance(dim, Fixed)
    name = next(item.group for item in groups.occurrences(dim) if item.detached)
    for part in groups.whole(name).slices:
        if part.block_dim is not None and part.dim == axis and groups.tensor_labels(part.tensor) is dims:
            assert part.block_of is not None
            return part.block_dim, part.block_of
    raise AssertionError("a detached group has its blocks in the same tensor")


def _gather(
    groups: Groups,
    dims: tuple[Dim, ...],
    axis: int,
    dim: Dim,
    tensor: Tensor,
    keep: KeepMask,
    kept: BoolArray,
) -> Tensor:
    """Another selection along ``axis`` for each block of another dimension, equal in number.

    Blocks that lose all their units belong to indices of the other dimension that go too; which of
    their entries is taken does not matter.
    """
    block_axis, block_of = _blocks(groups, dims, axis)
    count = int(kept.sum(axis=1).max())
    order = np.argsort(~kept, axis=1, kind="stable")[:, :count]
    rows = order[block_of]
    if block_axis < axis:
        rows = _narrow_rows(groups, dims, block_axis, keep, rows)
    index = torch.from_numpy(np.ascontiguousarray(rows)).to(tensor.device)
    if block_axis > axis:
        index = index.T
    shape = [1] * tensor.ndim
    shape[axis], shape[block_axis] = count, rows.shape[0]
    index = index.reshape(shape)
    full = [count if other == axis else size for other, size in enumerate(tensor.shape)]
    return torch.gather(tensor, axis, index.expand(full))


def _narrow_rows(
    groups: Groups, dims: tuple[Dim, ...], block_axis: int, keep: KeepMask, rows: np.ndarray
) -> np.ndarray:
    """The block dimension comes first and was narrowed already; so must its rows be."""
    kept = kept_by_block(groups, dims, block_axis, keep)
    return rows if kept is None else rows[kept[0]]
