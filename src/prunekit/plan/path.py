"""The order in which groups give up units: one path of small steps from everything to the least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunekit.plan.leeway import Leeway, global_leeway, uniform_leeway
from prunekit.types import BoolArray, Group, IntArray


@dataclass(frozen=True)
class Path:
    """The steps from every unit kept to the fewest allowed, in the order in which they are taken.

    A step takes one group to its next allowed count. A point of the path, or near it, is a level per group;
    taking more steps never brings a unit back.

    Attributes:
        groups: the groups, in order.
        counts: for each group the numbers of units a block may keep
            (:func:`prunekit.plan.limits.allowed_counts`).
        order: ``[steps]`` int64, the group each step belongs to.
        leeway: for each group how far its levels may lie from the path (:mod:`prunekit.plan.leeway`).
    """

    groups: tuple[Group, ...]
    counts: tuple[IntArray, ...]
    order: IntArray
    leeway: tuple[Leeway, ...]

    @property
    def last_levels(self) -> IntArray:
        """The level of each group at the end of the path, ``[groups]``."""
        return np.array([len(counts) - 1 for counts in self.counts], dtype=np.int64)

    def levels(self, steps: int) -> IntArray:
        """The level of each group after the first ``steps`` steps, ``[groups]``."""
        return np.bincount(self.order[:steps], minlength=len(self.groups)).astype(np.int64)

    def kept_per_block(self, levels: IntArray) -> list[int]:
        """How many units each block of each group keeps at these levels."""
        return [int(counts[level]) for counts, level in zip(self.counts, levels, strict=True)]

    def is_near(self, levels: IntArray) -> BoolArray:
        """Whether there is a place at which every group may be at its level.

        Args:
            levels: ``[..., groups]``.

        Returns:
            ``[...]``.
        """
        first, last = self.places(levels, range(len(self.groups)))
        return first <= last

    def places(self, levels: IntArray, groups: Sequence[int]) -> tuple[npt.NDArray, npt.NDArray]:
        """The first and the last place at which each of these groups may be at its level.

        Args:
            levels: ``[..., len(groups)]``.
            groups: indices of groups.

        Returns:
            Two arrays ``[...]``; the first is above the last where there is no such place.
        """
        first = np.full(levels.shape[:-1], -np.inf)
        last = np.full(levels.shape[:-1], np.inf)
        for column, group in enumerate(groups):
            leeway = self.leeway[group][levels[..., column]]
            first = np.maximum(first, leeway[..., 0])
            last = np.minimum(last, leeway[..., 1] + 1e-9)  # shares are rounded
        return first, last


def uniform_levels(counts: IntArray, share: float) -> int:
    """Return the level at which a group has given up the share that comes nearest to ``share``.

    Rule: the allowed count nearest to ``units_per_block * (1 - share)``; of two equally near the larger. So
    0.5 of 7 units removes 3 and keeps 4.
    """
    # A level is entered once the wish lies beyond the middle between its count and the one before. Twice the
    # counts are integers; nine decimals are finer than any middle and coarser than the error of a product.
    middles = 2 * counts[0] - counts[:-1] - counts[1:]
    return int(np.count_nonzero(middles < round(2 * int(counts[0]) * share, 9)))


def uniform_path(groups: Sequence[Group], counts: Sequence[IntArray]) -> Path:
    """Order the steps so that all groups give up the same share, as nearly as their counts allow.

    A step is taken at the share at which :func:`uniform_levels` enters it; steps of equal share go in the
    order of the groups.

    Args:
        groups: the groups.
        counts: for each group :func:`prunekit.plan.limits.allowed_counts`.
    """
    shares = [(2 * c[0] - c[:-1] - c[1:]) / (2 * c[0]) for c in counts]
    leeway = tuple(uniform_leeway(group, count) for group, count in zip(groups, counts, strict=True))
    return Path(tuple(groups), tuple(counts), _order(counts, shares), leeway)


def global_path(
    groups: Sequence[Group],
    counts: Sequence[IntArray],
    orders: Sequence[IntArray],
    scores: Sequence[npt.NDArray],
) -> Path:
    """Order the steps by the mean score of the units that go with them, lowest first, across all groups.

    Of equal scores the step goes first that leaves its group the larger share, then the order of the groups;
    so groups with equal scores throughout shrink together and none is emptied before the others.

    Args:
        groups: the groups.
        counts: for each group :func:`prunekit.plan.limits.allowed_counts`.
        orders: for each group :func:`prunekit.plan.select.keep_order`.
        scores: for each group ``[units]``, comparable across groups.
    """
    ranks = []
    for order, score, count in zip(orders, scores, counts, strict=True):
        rising = score.astype(np.float64)[order].mean(axis=0)[::-1]
        totals = (
            np.add.reduceat(rising[: count[0] - count[-1]], count[0] - count[:-1]) if len(count) > 1 else []
        )
        ranks.append(totals / (count[:-1] - count[1:]))
    steps = _order(counts, ranks)
    return Path(tuple(groups), tuple(counts), steps, tuple(global_leeway(groups, counts, steps)))


def _order(counts: Sequence[IntArray], ranks: Sequence[npt.NDArray]) -> IntArray:
    """Sort all steps by rank, then by the share of its group that is gone after the step, then by group."""
    if not counts:
        return np.zeros(0, dtype=np.int64)
    gone = np.concatenate([1 - c[1:] / c[0] for c in counts])
    group = np.concatenate([np.full(len(c) - 1, index) for index, c in enumerate(counts)])
    return group[np.lexsort((group, gone, np.concatenate(ranks)))].astype(np.int64)
