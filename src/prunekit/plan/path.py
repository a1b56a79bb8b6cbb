"""The order in which groups give up units: one path of small steps from everything to the least."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunekit.errors import SelectionError
from prunekit.types import Group, IntArray


@dataclass(frozen=True)
class Limits:
    """What no group may be pruned beyond. A group may always be kept whole.

    Attributes:
        min_units: fewest units a group keeps, >= 1; a group that has no more is kept whole.
        max_sparsity: largest fraction of a group's units that may go, in ``[0, 1]``.
        round_to: a group that is pruned keeps a multiple of this many units, >= 1.

    Raises:
        SelectionError: a value outside these ranges.
    """

    min_units: int = 1
    max_sparsity: float = 1.0
    round_to: int = 1

    def __post_init__(self) -> None:
        for name in ("min_units", "round_to"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SelectionError(
                    f"The limit is {value!r}", expected="an integer of at least 1", where=name
                )
        if not 0 <= self.max_sparsity <= 1:
            raise SelectionError(
                f"The limit is {self.max_sparsity!r}", expected="a number from 0 to 1", where="max_sparsity"
            )


def allowed_counts(group: Group, limits: Limits) -> IntArray:
    """List the numbers of units each block of a group may keep, from all of them down.

    Every block keeps the same number and at least one unit.

    Returns:
        ``[levels]`` int64, strictly falling, the first is ``units_per_block``; level 0 = whole.
    """
    whole = group.units_per_block
    step = limits.round_to // math.gcd(limits.round_to, group.blocks)
    # 1e-9: 10 * (1 - 0.9) is a little above 1 in binary
    least = max(1, -(-limits.min_units // group.blocks), math.ceil(whole * (1 - limits.max_sparsity) - 1e-9))
    multiples = np.arange(whole // step * step, -(-least // step) * step - 1, -step, dtype=np.int64)
    return np.concatenate([[whole], multiples[multiples < whole]]).astype(np.int64)


@dataclass(frozen=True)
class Path:
    """The steps from every unit kept to the fewest allowed, in the order in which they are taken.

    A step takes one group to its next allowed count. A point of the path, or near it, is a level per group;
    taking more steps never brings a unit back.

    Attributes:
        groups: the groups, in order.
        counts: for each group the numbers of units a block may keep (:func:`allowed_counts`).
        order: ``[steps]`` int64, the group each step belongs to.
    """

    groups: tuple[Group, ...]
    counts: tuple[IntArray, ...]
    order: IntArray

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


def uniform_levels(counts: IntArray, share: float) -> int:
    """Return the level at which a group has given up the share that comes nearest to ``share``.

    Rule: the allowed count nearest to ``units_per_block * (1 - share)``; of two equally near the larger. So
    0.5 of 7 units removes 3 and keeps 4.
    """
    # A level is entered once the wish lies beyond the middle between its count and the one before. Twice the
    # counts are integers; nine decimals are finer than any middle and coarser than the error of a product.
    middles = 2 * counts[0] - counts[:-1] - counts[1:]
    return int(np.count_nonzero(middles < round(2 * int(counts[0]) * share, 9)))


def uniform_path(groups: Sequence[Group], limits: Limits) -> Path:
    """Order the steps so that all groups give up the same share, as nearly as their counts allow.

    A step is taken at the share at which :func:`uniform_levels` enters it; steps of equal share go in the
    order of the groups.
    """
    counts = tuple(allowed_counts(group, limits) for group in groups)
    shares = [(2 * c[0] - c[:-1] - c[1:]) / (2 * c[0]) for c in counts]
    return _ordered(groups, counts, shares)


def global_path(
    groups: Sequence[Group], orders: Sequence[IntArray], scores: Sequence[npt.NDArray], limits: Limits
) -> Path:
    """Order the steps by the mean score of the units that go with them, lowest first, across all groups.

    Of equal scores the step goes first that leaves its group the larger share, then the order of the groups;
    so groups with equal scores throughout shrink together and none is emptied before the others.

    Args:
        groups: the groups.
        orders: for each group :func:`prunekit.plan.select.keep_order`.
        scores: for each group ``[units]``, comparable across groups.
        limits: what no group may be pruned beyond.
    """
    counts = tuple(allowed_counts(group, limits) for group in groups)
    ranks = []
    for order, score, count in zip(orders, scores, counts, strict=True):
        rising = score.astype(np.float64)[order].mean(axis=0)[::-1]
        totals = (
            np.add.reduceat(rising[: count[0] - count[-1]], count[0] - count[:-1]) if len(count) > 1 else []
        )
        ranks.append(totals / (count[:-1] - count[1:]))
    return _ordered(groups, counts, ranks)


def _ordered(groups: Sequence[Group], counts: tuple[IntArray, ...], ranks: Sequence[npt.NDArray]) -> Path:
    """Sort all steps by rank, then by the share of its group that is gone after the step, then by group."""
    if not groups:
        return Path((), (), np.zeros(0, dtype=np.int64))
    gone = np.concatenate([1 - c[1:] / c[0] for c in counts])
    group = np.concatenate([np.full(len(c) - 1, index) for index, c in enumerate(counts)])
    order = np.lexsort((group, gone, np.concatenate(ranks)))
    return Path(tuple(groups), counts, group[order].astype(np.int64))
