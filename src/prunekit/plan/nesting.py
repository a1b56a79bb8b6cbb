"""Groups inside groups: where a unit of one group holds whole blocks of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from prunekit.types import BoolArray, Group, IntArray, Slice

Nesting = Mapping[str, Mapping[str, IntArray]]
"""For a group with blocks, by each group around it: ``[blocks]`` the unit of that one each block lies in."""


def find_nesting(groups: Sequence[Group]) -> Nesting:
    """Find the groups that hold blocks of other groups, from the dimensions the two share.

    Group ``outer`` holds the blocks of ``inner`` where, along a dimension of a tensor that carries both, all
    indices of a block belong to one unit of ``outer`` (heads hold head dimensions, the groups of a
    convolution hold the channels of each group). A layer holds every group that touches nothing outside it.

    Args:
        groups: the groups that may be pruned; only these are looked for.

    Returns:
        Only the groups that lie inside another one.
    """
    along: dict[tuple[str, int], list[tuple[Group, IntArray]]] = {}
    for group in groups:
        for part in group.slices:
            if part.block_dim is None and not group.is_depth:
                along.setdefault((part.tensor, part.dim), []).append((group, part.units))
    found: dict[str, dict[str, IntArray]] = {}
    for inner in groups:
        if inner.blocks == 1:
            continue
        for part in inner.slices:
            dim = part.dim if part.block_dim is None else part.block_dim
            for outer, units in along.get((part.tensor, dim), []):
                holder = _holders(_blocks_along(part, inner), units, inner.blocks)
                if outer.name != inner.name and holder is not None:
                    found.setdefault(inner.name, {})[outer.name] = holder
    for layers in groups:
        if layers.is_depth:
            for inner, unit in _inside(layers, groups).items():
                blocks = next(group.blocks for group in groups if group.name == inner)
                found.setdefault(inner, {})[layers.name] = np.full(blocks, unit, dtype=np.int64)
    return found


def _inside(layers: Group, groups: Sequence[Group]) -> dict[str, int]:
    """The groups that touch no tensor outside one of these layers, with that layer's unit."""
    unit_of = {part.tensor: int(part.units[0]) for part in layers.slices}
    found = {}
    for group in groups:
        units = {unit_of.get(tensor, -1) for tensor in group.tensors}
        if group.name != layers.name and len(units) == 1 and units != {-1}:
            found[group.name] = units.pop()
    return found


def without_lost_blocks(
    masks: Mapping[str, BoolArray], groups: Mapping[str, Group], nesting: Nesting
) -> dict[str, BoolArray]:
    """Take away the units that go because the unit around their block goes.

    So a mask says what is really left, a smaller model numbers its units as the ``True`` entries follow each
    other, and plans compose by indexing.

    Args:
        masks: by group name ``[units]`` bool; groups that lose nothing may be absent.
        groups: by name.
        nesting: from :func:`find_nesting`.

    Returns:
        New masks where needed; every block keeps as many units as before, or none.
    """
    left = dict(masks)
    pending = True
    while pending:  # a block may be lost through a block that is lost: outer groups have outer groups
        pending = False
        for name, holders in nesting.items():
            mask = left.get(name, np.ones(groups[name].size, dtype=np.bool_))
            alive = np.ones(groups[name].blocks, dtype=np.bool_)
            for outer, holder in holders.items():
                if outer in left:
                    alive &= left[outer][holder]
            smaller = mask & np.repeat(alive, groups[name].units_per_block)
            if (smaller != mask).any():
                left[name] = smaller
                pending = True
    return left


def _blocks_along(part: Slice, group: Group) -> IntArray:
    """``[n]`` the block each index of a slice's block dimension, or of its own, lies in; -1 = none."""
    if part.block_of is not None:
        return part.block_of
    return np.where(part.units >= 0, part.units // group.units_per_block, -1)


def _holders(block: IntArray, units: IntArray, blocks: int) -> IntArray | None:
    """``[blocks]`` the one unit each block belongs to, or None if some block has none or several."""
    inside = block >= 0
    holder = np.full(blocks, -1, dtype=np.int64)
    holder[block[inside]] = units[inside]
    one_each = (holder >= 0).all() and (holder[block[inside]] == units[inside]).all()
    return holder if one_each else None
