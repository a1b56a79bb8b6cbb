"""Levers: the single decisions a plan is made of, each with the few levels it may take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from prunekit.errors import SelectionError
from prunekit.plan.limits import UNLIMITED, Limits, allowed_counts, limits_by_group
from prunekit.plan.nesting import (
    Nesting,
    find_nesting,
    without_lost_blocks,
    without_what_goes_whole,
)
from prunekit.plan.select import keep_mask, keep_order, scores_of
from prunekit.types import BoolArray, FloatArray, Group, IntArray, Scores

MOST_LEVELS = 8
"""Levels of a lever, where nothing else is asked for."""


@dataclass(frozen=True, eq=False)
class Lever:
    """One decision: how many units a group keeps, or whether one layer or branch stays.

    Attributes:
        name: the group's, with ``[unit]`` behind it for a layer or a branch.
        group: whose units it is about.
        kept: ``[levels]`` int64, how many units each block keeps, strictly falling; level 0 = whole.
        order: ``[blocks, units_per_block]``, units from the first to keep to the first to go.
        unit: the layer or branch, else None; then the levels are 1 (it stays) and 0.
    """

    name: str
    group: Group
    kept: IntArray
    order: IntArray
    unit: int | None = None

    def __len__(self) -> int:
        return len(self.kept)

    def removed(self, level: int) -> IntArray:
        """The ids of the units that go at a level, ascending."""
        if self.unit is not None:
            return np.array([self.unit] if level else [], dtype=np.int64)
        return np.sort(self.order[:, self.kept[level] :].ravel())


class Levers:
    """All levers of a model; what a level of each means for the units.

    Attributes:
        all: in the order of the groups.
    """

    def __init__(self, groups: Sequence[Group], levers: Sequence[Lever]) -> None:
        self.all = tuple(levers)
        self._groups = {group.name: group for group in groups}
        self._nesting: Nesting = find_nesting(tuple(groups))

    def __iter__(self) -> Iterator[Lever]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, place: int) -> Lever:
        return self.all[place]

    @property
    def last(self) -> IntArray:
        """The last level of every lever, ``[levers]``."""
        return np.array([len(lever) - 1 for lever in self.all], dtype=np.int64)

    @property
    def sizes(self) -> dict[str, int]:
        """Units of every group, by name."""
        return {name: group.size for name, group in self._groups.items()}

    def masks(self, levels: Sequence[int] | IntArray) -> dict[str, BoolArray]:
        """What stays at these levels; what lies in something that goes, goes along.

        Args:
            levels: ``[levers]``, one of each lever.

        Returns:
            By group name ``[units]`` bool; groups that lose nothing are absent.
        """
        masks: dict[str, BoolArray] = {}
        for lever, level in zip(self.all, levels, strict=True):
            if not level:
                continue
            if lever.unit is None:
                masks[lever.group.name] = keep_mask(lever.order, int(lever.kept[level]))
            else:
                mask = masks.setdefault(lever.group.name, np.ones(lever.group.size, dtype=np.bool_))
                mask[lever.unit] = False
        return without_lost_blocks(without_what_goes_whole(masks, self._groups), self._groups, self._nesting)


def find_levers(
    groups: Sequence[Group],
    scores: Scores,
    *,
    limits: Limits = UNLIMITED,
    per_group: Mapping[str, Limits] | None = None,
    most_levels: int = MOST_LEVELS,
    widths: Mapping[str, Sequence[int]] | None = None,
) -> Levers:
    """Find the levers of a model and the levels each may take.

    Of the counts that the limits allow, ``most_levels`` are taken that lie evenly between all and the fewest,
    multiples of 16, 8 or 4 units before others near them. Which widths a target rewards is not known here:
    see :func:`prunekit.targeting.rewarded_widths`.

    Args:
        groups: those that may be pruned.
        scores: by group name ``[units]``; higher = keep.
        limits: what no group may be pruned beyond.
        per_group: limits of groups that match a pattern.
        most_levels: of one lever, at least 2.
        widths: by group name, the units to choose from, in place of what is said above; the whole group is
            added.

    Raises:
        SelectionError: a limit that cannot be; fewer than two levels; widths that no limit allows.
        ShapeError: scores that do not fit.
        CalibrationError: a score is NaN or infinite.
    """
    if most_levels < 2:
        raise SelectionError(f"{most_levels} levels were asked for", expected="at least 2", where="levels")
    groups = tuple(groups)
    held = limits_by_group(groups, limits, per_group or {})
    levers: list[Lever] = []
    for group, own in zip(groups, held, strict=True):
        counts, values = allowed_counts(group, own), scores_of(group, scores)
        if group.is_depth:
            levers.extend(_depth_levers(group, counts, values))
        else:
            named = (widths or {}).get(group.name)
            kept = _spread(group, counts, most_levels) if named is None else _named(group, counts, named)
            if len(kept) > 1:
                levers.append(Lever(group.name, group, kept, keep_order(values, group.blocks)))
    return Levers(groups, levers)


def _depth_levers(group: Group, counts: IntArray, scores: FloatArray) -> list[Lever]:
    """One lever for each layer that may go; those of the highest scores are not offered."""
    order = keep_order(scores, 1)
    most = int(counts[0] - counts[-1])
    offered = sorted(int(unit) for unit in order[0, group.size - most :])
    stays_or_goes = np.array([1, 0], dtype=np.int64)
    return [
        Lever(f"{group.name}[{unit}]", group, stays_or_goes, order, unit)
        for unit in offered
        if unit not in group.pinned
    ]


def _spread(group: Group, counts: IntArray, most: int) -> IntArray:
    """At most so many of the allowed counts, evenly spread, the rounder ones first."""
    if len(counts) <= most:
        return counts
    wished = np.linspace(counts[0], counts[-1], most)[1:]
    gap = (counts[0] - counts[-1]) / (most - 1) / 2
    found = [int(counts[0])]
    for wish in wished:
        near = counts[np.abs(counts - wish) <= gap]
        units = near * group.blocks
        roundness = np.select([units % 16 == 0, units % 8 == 0, units % 4 == 0], [3, 2, 1], 0)
        best = near[np.lexsort((np.abs(near - wish), -roundness))[0]]
        found.append(int(best))
    return np.array(sorted(set(found), reverse=True), dtype=np.int64)


def _named(group: Group, counts: IntArray, units: Sequence[int]) -> IntArray:
    per_block = sorted({group.units_per_block, *(count // group.blocks for count in units)}, reverse=True)
    wrong = [count for count in units if count % group.blocks or count // group.blocks not in counts]
    if wrong:
        raise SelectionError(
            f"The widths {wrong} are to choose from",
            expected=f"numbers of units that the limits allow, in {group.blocks} equal blocks",
            where=f"group '{group.name}'",
        )
    return np.array(per_block, dtype=np.int64)
