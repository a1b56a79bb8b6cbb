"""How far the groups of one plan may lie from what its scope promises.

Single units are often too coarse for a tolerance, so a plan may depart from the common share or from the
ranking; but not so far that the scope is no longer what the user chose.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from prunekit.types import Group, IntArray

NEAR_UNITS = 4
"""So many units of a wide group are a matter of rounding; more are a choice."""
NEAR_SHARE = 1 / 4
"""In a narrow group a few units are much: at most this share of it."""

OPEN = 1e-3
"""Units by which an open end is drawn in; ends that differ do so by more, at any width up to a thousand."""

Leeway = npt.NDArray[np.float64]
"""``[levels, 2]`` first and last place at which a level of a group may be taken; a place is common to all."""

BOUND: dict[str, str] = {
    "uniform": "every group keeps an allowed count next to the share that is common to all, or lies within 4 "
    "units of it (a quarter of a narrow group)",
    "global": "every group lies within one allowed step of where the ranking has it, or within 4 units (a "
    "quarter of a narrow group)",
}
"""What holds for every plan for MACs or parameters, by scope; a limit of a group comes first."""


def uniform_leeway(group: Group, counts: IntArray) -> Leeway:
    """Find the shares to which each count is next among the allowed ones, or lies within a few units.

    A place is a share ``s`` of all groups. A count belongs there if no other allowed one lies between it and
    ``size * (1 - s)``, or if it lies within :func:`near` units of that. The fewest that the limits allow
    belong to every share beyond.

    Args:
        group: the group.
        counts: ``[levels]`` units each block may keep, falling.
    """
    kept = counts * group.blocks
    most = np.maximum(np.concatenate([kept[:1], kept[:-1]]) - OPEN, kept + near(group))
    least = np.minimum(np.concatenate([kept[1:], kept[-1:]]) + OPEN, kept - near(group))
    least[-1] = -np.inf
    return np.stack([1 - most / group.size, 1 - least / group.size], axis=1)


def global_leeway(groups: Sequence[Group], counts: Sequence[IntArray], order: IntArray) -> list[Leeway]:
    """Find the numbers of steps at which each count departs from the ranking by one step, or by a few units.

    A place is a number of steps taken in the order of the ranking, common to all groups.

    Args:
        groups: the groups.
        counts: for each group ``[levels]`` units each block may keep, falling.
        order: ``[steps]`` the group each step belongs to.
    """
    leeways = []
    for index, (group, count) in enumerate(zip(groups, counts, strict=True)):
        last = len(count) - 1
        entered = np.concatenate([[0], np.flatnonzero(order == index) + 1, [len(order) + 1]])
        kept = count * group.blocks
        level = np.arange(last + 1)
        # kept falls, so its negative is sorted: the levels within a few units of each
        lowest = np.searchsorted(-kept, -kept - near(group), side="left")
        highest = np.searchsorted(-kept, -kept + near(group), side="right") - 1
        lowest = np.minimum(lowest, np.maximum(level - 1, 0))
        highest = np.maximum(highest, np.minimum(level + 1, last))
        leeways.append(np.stack([entered[lowest], entered[highest + 1] - 1], axis=1).astype(np.float64))
    return leeways


def near(group: Group) -> float:
    """How many units count as few in this group."""
    return min(NEAR_UNITS, group.size * NEAR_SHARE)
