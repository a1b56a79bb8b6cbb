"""What no group may be pruned beyond: for all groups, and for those that a pattern names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypedDict

import numpy as np

from prunekit.errors import SelectionError
from prunekit.types import Group, IntArray


class LimitValues(TypedDict, total=False):
    """The fields of :class:`Limits` as keyword arguments."""

    min_units: int | None
    max_sparsity: float | None
    round_to: int | None


@dataclass(frozen=True)
class Limits:
    """What no group may be pruned beyond. A group may always be kept whole; None = nothing said.

    Attributes:
        min_units: fewest units a group keeps, >= 1; a group that has no more is kept whole.
        max_sparsity: largest fraction of a group's units that may go, in ``[0, 1]``.
        round_to: a group that is pruned keeps a multiple of this many units, >= 1.

    Raises:
        SelectionError: a value outside these ranges.
    """

    min_units: int | None = None
    max_sparsity: float | None = None
    round_to: int | None = None

    def __post_init__(self) -> None:
        for name in ("min_units", "round_to"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise SelectionError(
                    f"The limit is {value!r}", expected="an integer of at least 1", where=name
                )
        share = self.max_sparsity
        if share is not None and not (isinstance(share, int | float) and 0 <= share <= 1):
            raise SelectionError(
                f"The limit is {share!r}", expected="a number from 0 to 1", where="max_sparsity"
            )

    def over(self, wider: Limits) -> Limits:
        """These limits, and those of ``wider`` where nothing is said here."""
        return replace(wider, **self.said)

    @property
    def said(self) -> dict[str, float]:
        """The limits about which something is said, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name}={value:g}" for name, value in self.said.items()) or "no limit"


UNLIMITED = Limits()
_PER_GROUP = "limits by pattern, such as {'layer1.*': Limits(min_units=8)}"


def allowed_counts(group: Group, limits: Limits) -> IntArray:
    """List the numbers of units each block of a group may keep, from all of them down.

    Every block keeps the same number and at least one unit; of layers all may go (``Group.least`` is 0).

    Returns:
        ``[levels]`` int64, strictly falling, the first is ``units_per_block``; level 0 = whole.
    """
    whole, round_to = group.units_per_block, limits.round_to or 1
    step = round_to // math.gcd(round_to, group.blocks)
    largest = 1.0 if limits.max_sparsity is None else limits.max_sparsity
    # 1e-9: 10 * (1 - 0.9) is a little above 1 in binary
    fewest = max(limits.min_units or 0, group.least, len(group.pinned))
    least = max(-(-fewest // group.blocks), math.ceil(whole * (1 - largest) - 1e-9))
    multiples = np.arange(whole // step * step, -(-least // step) * step - 1, -step, dtype=np.int64)
    return np.concatenate([[whole], multiples[multiples < whole]]).astype(np.int64)


def limits_by_group(
    groups: Sequence[Group], limits: Limits, per_group: Mapping[str, Limits]
) -> tuple[Limits, ...]:
    """Say for each group what holds for it.

    Rule: what a pattern says comes before what ``limits`` says, and of two patterns that match a group the
    later one comes first; each limit by itself.

    Args:
        groups: the groups that may be pruned.
        limits: for all groups.
        per_group: by shell-style pattern, held against the same names as those of ``Groups.select``.

    Raises:
        SelectionError: a pattern matches none of the groups, or asks for more units than a group has.
    """
    if not isinstance(per_group, Mapping):
        raise SelectionError(f"It is {per_group!r}", expected=_PER_GROUP, where="per_group")
    found = [limits] * len(groups)
    for pattern, own in per_group.items():
        if not isinstance(pattern, str) or not isinstance(own, Limits):
            raise SelectionError(f"It holds {pattern!r}: {own!r}", expected=_PER_GROUP, where="per_group")
        matched = [index for index, group in enumerate(groups) if group.matches(pattern)]
        if not matched:
            raise SelectionError(
                f"the pattern {pattern!r} matches no prunable group, tensor or module",
                expected="a shell-style pattern such as 'layer1.*' or 'conv1.weight'",
                where="per_group",
                remedy="`prunekit inspect` lists the groups and the tensors they touch",
            )
        for index in matched:
            _check_width(groups[index], own, pattern)
            found[index] = own.over(found[index])
    return tuple(found)


def _check_width(group: Group, limits: Limits, pattern: str) -> None:
    if limits.min_units is not None and limits.min_units > group.size:
        raise SelectionError(
            f"The group '{group.name}' is to keep at least {limits.min_units} units and has {group.size}",
            expected=f"min_units of at most {group.size}",
            where=f"per_group '{pattern}'",
            remedy="Lower it, or narrow the pattern; min_units for all groups keeps narrower groups whole",
        )
