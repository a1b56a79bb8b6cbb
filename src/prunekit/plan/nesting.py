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
    convolution hold the channels of each group).

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


def without_what_goes_whole(
    masks: Mapping[str, BoolArray], groups: Mapping[str, Group]
) -> dict[str, BoolArray]:
    """Take away what lies in layers and branches that go: smaller ones, and groups of any other kind.

    Something lies in what goes if every tensor it touches does.

    Args:
        masks: by group name ``[units]`` bool; groups that lose nothing may be absent.
        groups: by name.

    Returns:
        New masks where needed.
    """
    left = dict(masks)
    lost: set[str] = set()
    depth = {group.name: _tensors_by_unit(group) for group in groups.values() if group.is_depth}
    pending = True
    while pending:  # Each time more may go, the last time nothing does.
        before = len(lost)
        for name, tensors in depth.items():
            mask = left.get(name)
            goes = [unit for unit in tensors if tensors[unit] <= lost]
            if goes or mask is not None:
                mask = np.ones(groups[name].size, dtype=np.bool_) if mask is None else mask.copy()
                mask[goes] = False
                left[name] = mask
                lost |= {tensor for unit in tensors if not mask[unit] for tensor in tensors[unit]}
        pending = len(lost) > before
    for name, group in groups.items():
        if lost and not group.is_depth and lost.issuperset(group.tensors):
            left[name] = np.zeros(group.size, dtype=np.bool_)
    return left


def _tensors_by_unit(group: Group) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for part in group.slices:
        found.setdefault(int(part.units[0]), set()).add(part.tensor)
    return found


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
