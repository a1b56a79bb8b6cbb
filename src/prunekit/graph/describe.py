"""Groups and frozen axes as text: every slice they touch, and every reason."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from prunekit.types import Frozen, Group, Slice


def describe(groups: Iterable[Group], frozen: Iterable[Frozen]) -> str:
    """One paragraph per group, with a line per slice, and one per frozen axis, with operator and source."""
    paragraphs = [_group(group) for group in groups]
    paragraphs += [_frozen(axis) for axis in frozen]
    return "\n\n".join(paragraphs) or "No axis was found."


def _group(group: Group) -> str:
    blocks = f" in {group.blocks} blocks of {group.units_per_block}" if group.blocks > 1 else ""
    masks = "" if group.mask_equivalent else f"; not mask-equivalent: {group.not_mask_equivalent_because}"
    least = f"; at least {group.least} stay" if group.least > 1 else ""
    head = f"{group.name}: {group.granularity.value}, {group.size} units{blocks}{least}{masks}"
    return "\n".join([head, *(f"  {_slice(part)}" for part in group.slices)])


def _slice(part: Slice) -> str:
    taken = np.flatnonzero(part.units >= 0)
    count = len(part.units)
    which = "" if len(taken) == count else f", {len(taken)} of {count} indices ({_ranges(taken)})"
    units = len(np.unique(part.units[taken]))
    repeated = f", {len(taken) // units} per unit" if units and len(taken) > units else ""
    blocks = "" if part.block_dim is None else f", blocks along dim {part.block_dim}"
    return f"{part.tensor} dim {part.dim}, {part.role}{which}{repeated}{blocks}"


def _ranges(indices: np.ndarray) -> str:
    """``0-3, 8, 10-11`` and so on; the first few."""
    runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    named = [f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs[:4]]
    return ", ".join(named) + (" ..." if len(runs) > 4 else "")


def _frozen(axis: Frozen) -> str:
    lines = [f"frozen {axis.name}, {axis.size} indices: {axis.reason} [{axis.operator}]"]
    if axis.source:
        lines.append(f"  {axis.source}")
    return "\n".join([*lines, *(f"  {part.tensor} dim {part.dim}" for part in axis.slices)])
