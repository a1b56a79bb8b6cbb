"""What removal should give, computed from the groups' slices with nothing but NumPy and plain indexing."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from prunekit.graph import Groups
from prunekit.types import BoolArray, Group, IntArray, KeepMask, Slice


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and plain tensor attributes by every name they have."""
    found = dict(model.named_parameters(remove_duplicate=False))
    found.update(model.named_buffers(remove_duplicate=False))
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                found[f"{path}.{name}" if path else name] = value
    return found


def gone(part: Slice, group: Group, keep: BoolArray, shape: tuple[int, ...]) -> BoolArray:
    """``shape`` bool: which elements of the slice's tensor go."""
    along = [1] * len(shape)
    along[part.dim] = shape[part.dim]
    if part.block_dim is None:
        lost = np.where(part.units >= 0, ~keep[part.units], False).reshape(along)
    else:
        assert part.block_of is not None
        by_block = keep.reshape(group.blocks, -1)
        along[part.block_dim] = shape[part.block_dim]
        lost = np.zeros(along, dtype=np.bool_)
        for row, block in enumerate(part.block_of.tolist()):
            for index, unit in enumerate(part.units.tolist()):
                place = [0] * len(shape)
                place[part.block_dim], place[part.dim] = row, index
                lost[tuple(place)] = unit >= 0 and not by_block[block, unit]
    return np.broadcast_to(lost, shape)


def lost_elements(groups: Groups, keep: KeepMask) -> dict[str, BoolArray]:
    """For every tensor that loses something, which of its elements go."""
    lost: dict[str, BoolArray] = {}
    for name, mask in keep.items():
        for part in groups[name].slices:
            shape = groups.tensor_shape(part.tensor)
            before = lost.get(part.tensor, np.zeros(shape, dtype=np.bool_))
            lost[part.tensor] = before | gone(part, groups[name], mask, shape)
    return lost


def zeroed(model: nn.Module, groups: Groups, keep: KeepMask) -> nn.Module:
    """A copy in which everything that belongs to a removed unit is zero."""
    twin = copy.deepcopy(model)
    tensors = tensors_of(twin)
    with torch.no_grad():
        for name, lost in lost_elements(groups, keep).items():
            tensors[name].masked_fill_(torch.from_numpy(np.ascontiguousarray(lost)), 0.0)
    return twin


def cut_out(groups: Groups, keep: KeepMask, name: str, tensor: Tensor) -> Tensor:
    """What is left of one tensor: the kept units of each block move to its front, then all blocks are cut."""
    cut: dict[str, BoolArray] = {}
    inner_first = sorted((groups[each] for each in keep), key=lambda group: -group.blocks)
    for group in inner_first:
        by_block = keep[group.name].reshape(group.blocks, -1)
        left = by_block.sum(axis=1).max()  # A block that goes altogether goes with the group around it.
        cut[group.name] = np.tile(np.arange(group.units_per_block) < left, group.blocks)
        for part in (part for part in group.slices if part.tensor == name and group.blocks > 1):
            tensor = _moved(tensor, part, [np.argsort(~kept, kind="stable") for kept in by_block])
        if group.blocks == 1:
            cut[group.name] = keep[group.name]
    lost = lost_elements(groups, cut).get(name, np.zeros(tensor.shape, dtype=np.bool_))
    for axis in range(tensor.ndim):
        others = tuple(other for other in range(tensor.ndim) if other != axis)
        alive = torch.from_numpy(np.flatnonzero(~lost.all(axis=others)))
        tensor = tensor.index_select(axis, alive)
    return recounted(groups, keep, name, tensor)


def recounted(groups: Groups, keep: KeepMask, name: str, tensor: Tensor) -> Tensor:
    """Positions that are looked up: each that is left names what it named, where that is now."""
    for lookup in groups.lookups:
        if lookup.tensor == name:
            alive = np.flatnonzero(groups.kept(lookup.into, groups.tied(keep)))
            named = [place % len(lookup.into) for place in tensor.tolist()]
            left = [alive.tolist().index(place) for place in named if place in alive]
            return torch.tensor(left, dtype=tensor.dtype)
    return tensor


def permuted(model: nn.Module, groups: Iterable[Group], seed: int) -> nn.Module:
    """A copy in which the units of every group change places, inside their blocks, in every slice."""
    twin = copy.deepcopy(model)
    draw = np.random.default_rng(seed)
    tensors = tensors_of(twin)
    with torch.no_grad():
        for group in groups:
            orders = [_derangement(group.units_per_block, draw) for _ in range(group.blocks)]
            for part in group.slices:
                tensors[part.tensor].copy_(_moved(tensors[part.tensor], part, orders))
    return twin


def _derangement(size: int, draw: np.random.Generator) -> IntArray:
    """A random permutation without a fixed point (but for one unit): around a random cycle."""
    cycle = draw.permutation(size)
    order = np.empty(size, dtype=np.int64)
    order[cycle] = np.roll(cycle, 1)
    return order


def _moved(tensor: Tensor, part: Slice, orders: list[IntArray]) -> Tensor:
    size = len(orders[0])
    if part.block_dim is None:
        order = np.concatenate([block * size + order for block, order in enumerate(orders)])
        return tensor.index_select(part.dim, _source(part.units, order))
    assert part.block_of is not None
    rows = [
        row.index_select(part.dim - (part.block_dim < part.dim), _source(part.units, orders[block]))
        for row, block in zip(tensor.unbind(part.block_dim), part.block_of.tolist(), strict=True)
    ]
    return torch.stack(rows, part.block_dim)


def _source(units: IntArray, order: IntArray) -> Tensor:
    """For each index the one that comes to its place: the same occurrence of unit ``order[unit]``."""
    source = np.arange(len(units))
    for unit in np.unique(units[units >= 0]):
        source[units == unit] = np.flatnonzero(units == order[unit])
    return torch.from_numpy(source)


def run(model: nn.Module, inputs: tuple[tuple, dict[str, Any]]) -> list[Tensor]:
    """The floating-point outputs, in evaluation mode; the inputs are not written to."""
    args, kwargs = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
    with torch.no_grad():
        leaves = pytree.tree_leaves(model.eval()(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def error(reference: list[Tensor], other: list[Tensor]) -> float:
    """Largest difference over the largest magnitude of the reference, over all outputs."""
    assert [tensor.shape for tensor in reference] == [tensor.shape for tensor in other]
    assert all(bool(tensor.any()) for tensor in reference), "outputs of zeros tell nothing apart"
    pairs = zip(reference, other, strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def in_double(inputs: tuple[tuple, dict[str, Any]]) -> tuple[tuple, dict[str, Any]]:
    """Floating-point inputs in float64."""
    return pytree.tree_map(
        lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, inputs
    )


def more(inputs: tuple[tuple, dict[str, Any]], count: int = 3) -> tuple[tuple, dict[str, Any]]:
    """The inputs with another batch size, every example another one."""

    def grown(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        rows = torch.cat([leaf] * count)[:count]
        noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(7))
        return rows + noise if leaf.is_floating_point() else rows.flip(-1)

    return pytree.tree_map(grown, inputs)


def longer(inputs: tuple[tuple, dict[str, Any]]) -> tuple[tuple, dict[str, Any]]:
    """The inputs half as long again: sequences along dimension 1, images along both of theirs."""

    def grown(leaf: Any) -> Any:
        for dim in (2, 3) if leaf.ndim == 4 else (1,):
            leaf = torch.cat([leaf, leaf.narrow(dim, 0, leaf.shape[dim] // 2).flip(dim)], dim)
        return leaf

    return pytree.tree_map(grown, inputs)


def counted_cost(model: nn.Module, inputs: tuple[tuple, dict[str, Any]]) -> tuple[int, int]:
    """Parameters as they are, and half the operations that torch's own counter sees, for one example."""
    batch = next(leaf.shape[0] for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run(model, inputs)
    return sum(tensor.numel() for tensor in model.parameters()), counter.get_total_flops() // 2 // batch
