"""From solved labels to axes: which classes of indices form one axis, and where blocks are independent.

An axis is a maximal set of basic classes that occur in exactly the same dimensions of the same tensors, in
the same roles: they can be exchanged for each other, so they are the units of one axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from prunekit.graph.atoms import Dims, Fixed, Reason
from prunekit.graph.labels import Labels, flat_dims
from prunekit.graph.solve import Solution
from prunekit.types import IntArray

TWICE = Reason("reshape", "two of its indices meet in one index of a tensor")
ALONE = Reason("reshape", "it has one index, and removing it would remove a whole dimension")


@dataclass(frozen=True, eq=False)
class Axis:
    """Basic classes that are exchangeable: the units of one axis.

    Attributes:
        roots: ``[units]`` basic classes, in the order of the first tensor they occur in.
        reason: what froze it, or None.
        blocks: the outer factors, each ``[size]`` classes, in whose every combination the units may be
            chosen separately; empty where they may not.
    """

    roots: IntArray
    reason: Reason | None
    blocks: tuple[IntArray, ...] = ()


class Structure:
    """The axes of a labelled graph, and where each occurs.

    Attributes:
        axes: in the order of the graph.
        axis_of: ``[roots + 1]`` int64, the axis each basic class belongs to, -1 = none; the last entry is
            for the class -1, which stands for "no class".
        unit_of: ``[roots + 1]`` int64, its position in the axis.
    """

    def __init__(self, labels: Labels, solution: Solution) -> None:
        self.labels = labels
        self.solution = solution
        self._members: dict[int, IntArray] = {}
        self._kept: list[object] = []
        roots = self._roots_of_tensors()
        signature = self._signatures()
        self.axis_of = np.full(len(solution.root) + 1, -1, dtype=np.int64)
        self.unit_of = np.full(len(solution.root) + 1, -1, dtype=np.int64)
        by_signature: dict[int, list[int]] = {}
        for root in roots.tolist():
            by_signature.setdefault(int(signature[root]), []).append(root)
        plain = []
        for number, members in enumerate(by_signature.values()):
            array = np.array(members, dtype=np.int64)
            self.axis_of[array] = number
            self.unit_of[array] = np.arange(len(array))
            plain.append(Axis(array, self._reason(array)))
        twice = self._meeting_themselves()
        plain = [
            Axis(axis.roots, axis.reason or (TWICE if number in twice else None))
            for number, axis in enumerate(plain)
        ]
        self._tensors = self._axes_by_tensor(len(plain))
        self.axes = self._with_blocks(plain)

    def members(self, dim: IntArray) -> IntArray:
        """``[n, k]`` basic classes of every index of a dimension (see ``Solution.members``)."""
        found = self._members.get(id(dim))
        if found is None:
            found = self._members[id(dim)] = self.solution.members(dim)
            self._kept.append(dim)
        return found

    def units(self, dim: IntArray, number: int, axis: Axis) -> tuple[IntArray, bool]:
        """``[n]`` the unit of axis ``number`` each index belongs to, -1 = none, and whether it is detached.

        Where the axis has blocks and they lie in the same dimension, units are numbered through all blocks;
        where they lie in another dimension of the tensor (detached), inside their block.
        """
        members = self.members(dim)
        units = np.where(self.axis_of[members] == number, self.unit_of[members], -1).max(axis=1)
        if not axis.blocks:
            return units, False
        blocks = block_of(members, axis.blocks)
        if (blocks[units >= 0] < 0).any():
            return units, True
        return np.where(units >= 0, blocks * len(axis.roots) + units, -1), False

    def company(self, dim: IntArray, number: int, axis: Axis) -> IntArray | None:
        """``[n]`` equal where indices meet the same classes of other axes; None where there are none.

        The index at which one unit meets a class corresponds to that at which another unit meets it.
        """
        members = self.members(dim)
        if members.shape[1] == 1:
            return None
        own = (self.axis_of[members] == number) | np.isin(members, np.concatenate([axis.roots, *axis.blocks]))
        with np.errstate(over="ignore"):
            return np.where(own, 0, self._identity[members]).sum(axis=1)

    def occurrences(self, dim: IntArray) -> list[tuple[int, IntArray, bool]]:
        """Every axis that occurs in a dimension: its number, and what :meth:`units` gives."""
        numbers = np.unique(self.axis_of[self.members(dim)])
        return [
            (number, *self.units(dim, number, self.axes[number]))
            for number in numbers.tolist()
            if number >= 0
        ]

    def _dimensions(self) -> Iterator[IntArray]:
        """Every labelled dimension once: of parameters and buffers first, then of intermediate tensors."""
        seen: set[int] = set()
        for dims in self._all_dims():
            for dim in dims:
                if not isinstance(dim, Fixed) and id(dim) not in seen:
                    seen.add(id(dim))
                    yield dim

    def _all_dims(self) -> Iterator[Dims]:
        yield from self.labels.tensors.values()
        for outcome in self.labels.dims.values():
            yield from flat_dims(outcome)

    def _roots_of_tensors(self) -> IntArray:
        """Basic classes that occur in a parameter, buffer or constant, in order of appearance."""
        found = [
            self.members(dim).ravel()
            for dims in self.labels.tensors.values()
            for dim in dims
            if not isinstance(dim, Fixed)
        ]
        flat = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
        flat = flat[flat >= 0]
        unique, first = np.unique(flat, return_index=True)
        return unique[np.argsort(first, kind="stable")]

    def _signatures(self) -> IntArray:
        """A hash per root of everywhere it occurs, of what it meets there, and of what froze it.

        In an index that consists of several classes, each one's share depends on the others: units are
        exchangeable only where they meet the same classes equally often.
        """
        rng = np.random.default_rng(20260)
        count = len(self.solution.root)
        own = self._identity = rng.integers(-(2**62), 2**62, size=count + 1)
        own[-1] = 0
        signature = np.zeros(count, dtype=np.int64)
        factors = [factor for product in self.solution.products for factor in product.factors]
        for dim in (*self._dimensions(), *factors):
            members = self.members(dim)
            salt, one = rng.integers(-(2**62), 2**62, size=2)
            with np.errstate(over="ignore"):
                met = own[members].sum(axis=1, keepdims=True) - own[members]
                share = salt * (one + met)
            present = members >= 0
            np.add.at(signature, members[present], share[present])
        return (
            signature
            + rng.integers(-(2**62), 2**62, size=len(self.solution.reasons) + 1)[self.solution.reason]
        )

    def _reason(self, roots: IntArray) -> Reason | None:
        number = int(self.solution.reason[roots[0]])
        if number >= 0:
            return self.solution.reasons[number]
        return ALONE if len(roots) == 1 else None

    def _meeting_themselves(self) -> set[int]:
        found: set[int] = set()
        for dim in self._dimensions():
            members = self.members(dim)
            if members.shape[1] < 2:
                continue
            axes = np.sort(self.axis_of[members], axis=1)
            double = (axes[:, 1:] == axes[:, :-1]) & (axes[:, 1:] >= 0)
            found.update(axes[:, 1:][double].tolist())
        return found

    def _axes_by_tensor(self, count: int) -> list[list[Dims]]:
        """Per axis, every tensor that carries it."""
        carrying: list[list[Dims]] = [[] for _ in range(count)]
        seen: set[tuple[int, ...]] = set()
        for dims in self._all_dims():
            key = tuple(id(dim) for dim in dims if not isinstance(dim, Fixed))
            if not key or key in seen:
                continue
            seen.add(key)
            axes: set[int] = set()
            for dim in dims:
                if not isinstance(dim, Fixed):
                    members = self.members(dim)
                    axes.update(np.unique(self.axis_of[members]).tolist())
            for axis in axes - {-1}:
                carrying[axis].append(dims)
        return carrying

    def _with_blocks(self, axes: list[Axis]) -> list[Axis]:
        """The axes with the outer factors across which their units may be chosen separately.

        Of two factors of a product only the inner one gets blocks, in the order of the first product that
        has both.
        """
        found = list(axes)
        holds: set[tuple[int, int]] = set()
        for product in self.solution.products:
            factors = [_distinct(factor) for factor in product.factors]
            inside = [
                (at, number) for at, factor in enumerate(factors) for number in self._within(factor, axes)
            ]
            for position, number in inside:
                if axes[number].reason is not None or found[number].blocks:
                    continue
                outer = [
                    factor
                    for factor in factors[:position]
                    if not any((number, holder) in holds for holder in self.axis_of[factor].tolist())
                    and self._separate(number, factor)
                ]
                if len(outer) > 1 and not self._always_joint(number, outer):
                    outer = outer[:1]
                found[number] = replace(axes[number], blocks=tuple(outer))
                holds.update((holder, number) for factor in outer for holder in self.axis_of[factor].tolist())
        return found

    def _within(self, factor: IntArray, axes: list[Axis]) -> list[int]:
        """The axes whose units all are entries of ``factor``."""
        numbers, counts = np.unique(self.axis_of[factor], return_counts=True)
        return [
            number
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
            if number >= 0 and count == len(axes[number].roots)
        ]

    def _always_joint(self, number: int, outers: list[IntArray]) -> bool:
        """In every parameter, the axis lies in one dimension with all of ``outers``."""
        return all(
            self._joint(number, dim, outer)
            for dims in self.labels.tensors.values()
            for dim in dims
            if not isinstance(dim, Fixed)
            for outer in outers
        )

    def _separate(self, number: int, outer: IntArray) -> bool:
        """Every tensor that carries the axis carries ``outer``, and nothing mixes across ``outer``.

        Where the two lie in one dimension, each of its indices has one of each; where they lie in two
        dimensions of a tensor, ``outer`` labels the other one completely.
        """
        for dims in self._tensors[number]:
            present = [dim for dim in dims if not isinstance(dim, Fixed)]
            with_axis = [dim for dim in present if (self.axis_of[self.members(dim)] == number).any()]
            for dim in with_axis:
                if self._joint(number, dim, outer):
                    continue
                others = [other for other in present if other is not dim]
                if not any(self._labels_completely(other, outer) for other in others):
                    return False
        for across, within in self.labels.atoms.mixed:
            if np.isin(self.members(across), outer).any() and any(
                (self.axis_of[self.members(dim)] == number).any() for dim in within
            ):
                return False
        return True

    def _joint(self, number: int, dim: IntArray, outer: IntArray) -> bool:
        members = self.members(dim)
        with_axis = (self.axis_of[members] == number).any(axis=1)
        with_outer = np.isin(members, outer).sum(axis=1)
        return bool((with_outer[with_axis] == 1).all())

    def _labels_completely(self, dim: IntArray, outer: IntArray) -> bool:
        return bool((np.isin(self.members(dim), outer).sum(axis=1) == 1).all())


def _distinct(factor: IntArray) -> IntArray:
    """The classes of a factor, each once, in order: those of a dimension merged with a batch repeat."""
    _, first = np.unique(factor, return_index=True)
    return factor[np.sort(first)]


def block_of(members: IntArray, outers: tuple[IntArray, ...]) -> IntArray:
    """``[n]`` the block each index lies in, given its ``[n, k]`` members; -1 where it lies in none."""
    block = np.zeros(len(members), dtype=np.int64)
    for outer in outers:
        order = np.argsort(outer)
        place = np.clip(np.searchsorted(outer[order], members), 0, len(outer) - 1)
        position = np.where(outer[order][place] == members, order[place], -1).max(axis=1)
        block = np.where((position < 0) | (block < 0), -1, block * len(outer) + position)
    return block
