"""Narrowing tensors to the units a plan keeps, and zeroing the ones it removes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from prunekit.errors import ShapeError
from prunekit.graph import Groups
from prunekit.graph.atoms import Dim, Dims, Fixed
from prunekit.graph.constants import renumbered
from prunekit.types import BoolArray, Group, IntArray, KeepMask, Slice


def touched(groups: Groups, keep: KeepMask) -> list[str]:
    """The tensors that lose something, in the order of the graph, and those that count what others lose."""
    losing = {name for name, mask in keep.items() if not mask.all()}
    narrowed = [group for group in groups.prunable if group.name in losing and not group.is_depth]
    found = [name for group in narrowed for name in group.tensors]
    tied = groups.tied(keep)
    counting = [
        lookup.tensor
        for lookup in groups.lookups
        if lookup.tensor is not None and not groups.kept(lookup.into, tied).all()
    ]
    return list(dict.fromkeys((*found, *counting)))


def narrow(groups: Groups, name: str, tensor: Tensor, keep: KeepMask) -> Tensor:
    """What is left of ``tensor``, shaped like the parameter or buffer ``name`` of the dense model.

    The same call narrows whatever runs along with a parameter: its momentum, its moving average.

    Args:
        groups: of the dense model.
        name: of the parameter, buffer or constant.
        tensor: of its dense shape.
        keep: by group name, ``[units]`` bool.
    """
    tied = groups.tied(keep)
    tensor = cut(groups, groups.tensor_labels(name), fronted(groups, name, tensor, keep), tied)
    return _recounted(groups, name, tensor, tied).contiguous()


def cut(groups: Groups, dims: Dims, tensor: Tensor, tied: KeepMask) -> Tensor:
    """The indices of a tensor with these labels that are left, for a ``keep`` that is ``Groups.tied``."""
    for axis, dim in enumerate(dims):
        if isinstance(dim, Fixed):
            continue
        kept = groups.kept(dim, tied)
        if not kept.all():
            tensor = tensor.index_select(axis, torch.from_numpy(np.flatnonzero(kept)).to(tensor.device))
    return tensor


def _recounted(groups: Groups, name: str, tensor: Tensor, keep: KeepMask) -> Tensor:
    """Positions that lookups read from a tensor of their own, once what they look up is narrower."""
    lookup = next((found for found in groups.lookups if found.tensor == name), None)
    if lookup is None:
        return tensor
    left = renumbered(lookup.positions, groups.kept(lookup.into, keep))
    return torch.from_numpy(left).to(tensor)


def fronted(groups: Groups, name: str, tensor: Tensor, keep: KeepMask) -> Tensor:
    """The parameter or buffer with each block's kept units moved to the block's front, in their order."""

    def own(group: Group) -> Iterator[Slice]:
        return (part for part in group.slices if part.tensor == name)

    return to_the_front(groups, tensor, keep, own)


def to_the_front(
    groups: Groups, tensor: Tensor, keep: KeepMask, slices_of: Callable[[Group], Iterable[Slice]]
) -> Tensor:
    """:func:`fronted` for any tensor, given where the units of a group lie in it.

    Inner groups first: their masks are stated for the blocks where those lie before anything moves.
    """
    for group in sorted(groups.prunable, key=lambda group: -group.blocks):
        if group.blocks == 1 or group.name not in keep:
            continue
        order = front_order(group, keep[group.name])
        for part in slices_of(group):
            tensor = permute_units(tensor, part, group, order)
    return tensor


def front_order(group: Group, mask: BoolArray) -> IntArray:
    """``[units]`` the unit whose content comes to each place, so that every block's kept ones come first."""
    order = np.argsort(~mask.reshape(group.blocks, -1), axis=1, kind="stable")
    return (order + np.arange(group.blocks)[:, None] * group.units_per_block).ravel()


def permute_units(tensor: Tensor, part: Slice, group: Group, order: IntArray) -> Tensor:
    """The tensor with the content of unit ``order[u]`` in the place of unit ``u``, along one slice.

    Args:
        tensor: the tensor that ``part`` is a slice of.
        part: the slice.
        group: the group it belongs to.
        order: ``[units]``, a permutation that moves units only within their block.

    Raises:
        ShapeError: two units that change places have different numbers of indices.
    """
    if part.block_dim is None:
        index = torch.from_numpy(_sources(part, order)).to(tensor.device)
        return tensor.index_select(part.dim, index)
    assert part.block_of is not None
    size = group.units_per_block
    rows = np.stack(
        [
            _sources(part, order[block * size : (block + 1) * size] - block * size)
            for block in part.block_of.tolist()
        ]
    )
    index = torch.from_numpy(rows if part.block_dim < part.dim else rows.T.copy()).to(tensor.device)
    shape = [extent if axis in (part.dim, part.block_dim) else 1 for axis, extent in enumerate(tensor.shape)]
    return torch.gather(tensor, part.dim, index.reshape(shape).expand(tensor.shape))


def _sources(part: Slice, order: IntArray) -> IntArray:
    """``[n]``: for each index, the one whose content comes here.

    The k-th index of unit u takes the content of the k-th index of unit ``order[u]``, in the order of
    ``part.company`` where the slice has one.
    """
    places: dict[int, list[int]] = {}
    count = len(part.units)
    visited = range(count) if part.company is None else np.argsort(part.company, kind="stable").tolist()
    for index in visited:
        places.setdefault(int(part.units[index]), []).append(index)
    sources = np.arange(len(part.units))
    for unit, indices in places.items():
        if unit < 0:
            continue
        origin = places.get(int(order[unit]), [])
        if len(origin) != len(indices):
            raise ShapeError(
                f"units {unit} and {int(order[unit])} have {len(indices)} and {len(origin)} indices",
                expected="units of one group that can change places",
                where=f"{part.tensor} dimension {part.dim}",
            )
        sources[indices] = origin
    return sources


def zero(groups: Groups, name: str, tensor: Tensor, keep: KeepMask) -> Tensor:
    """``tensor`` with everything that belongs to a removed unit set to zero."""
    dims = groups.tensor_labels(name)
    result = tensor.clone()
    for axis in range(len(dims)):
        kept = _kept_by_block(groups, dims, axis, keep)
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


def _kept_by_block(groups: Groups, dims: tuple[Dim, ...], axis: int, keep: KeepMask) -> BoolArray | None:
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
