"""Atoms: the identities that index labels are made of, and every fact the operator rules state about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunekit.types import Granularity, IntArray


@dataclass(frozen=True)
class Reason:
    """Why something is frozen, or not mask-equivalent.

    Attributes:
        operator: that said so.
        text: one sentence.
        source: the user's source line, or "".
        obvious: nobody would expect it to be prunable (the extent of a kernel), so nobody is told.
    """

    operator: str
    text: str
    source: str = ""
    obvious: bool = False


@dataclass(frozen=True)
class Fixed:
    """A dimension that carries no labels; touching a labelled one freezes that one, for this reason."""

    size: int
    reason: Reason


Dim = IntArray | Fixed
"""One dimension of one tensor: ``[n]`` atoms, or nothing prunable."""

Dims = tuple[Dim, ...]
"""The labels of one tensor, dimension by dimension."""


def length(dim: Dim) -> int:
    """How many indices a dimension has."""
    return dim.size if isinstance(dim, Fixed) else len(dim)


SINGLE = Reason("size 1", "a dimension of size one has nothing to remove", obvious=True)


@dataclass(frozen=True, eq=False)
class Product:
    """``merged[p, q, ...]`` disappears exactly when one of ``factors[0][p], factors[1][q], ...`` does.

    A reshape between one dimension and several states it, and so does everything that is computed per
    group of channels.
    """

    merged: IntArray
    factors: tuple[IntArray, ...]


class Atoms:
    """Collects what the rules state; nothing is decided here (see ``solve``).

    Facts are kept as whole arrays, so that a dimension of 4096 costs one append.
    """

    def __init__(self) -> None:
        self.count = 0
        self.edges: list[tuple[IntArray, IntArray]] = []
        self.products: list[Product] = []
        self.frozen: list[tuple[IntArray, Reason]] = []
        self.not_mask_equivalent: list[tuple[IntArray, Reason]] = []
        self.mixed: list[tuple[IntArray, tuple[IntArray, ...]]] = []
        self.balanced: list[tuple[IntArray, ...]] = []
        self.summed: list[IntArray] = []
        self.kinds: list[tuple[IntArray, Granularity]] = []
        self.least: list[tuple[IntArray, int]] = []
        self.consumed: list[IntArray] = []
        self.produced: list[IntArray] = []
        self.convolved: list[IntArray] = []

    def fresh(self, size: int) -> IntArray:
        """``[size]`` atoms that nothing is known about."""
        atoms = np.arange(self.count, self.count + size, dtype=np.int64)
        self.count += size
        return atoms

    def labelled(self, dim: Dim) -> IntArray:
        """The atoms of ``dim``; a fixed one gets fresh atoms that are frozen for its reason."""
        if isinstance(dim, Fixed):
            atoms = self.fresh(dim.size)
            self.freeze(atoms, dim.reason)
            return atoms
        return dim

    def unify(self, left: Dim, right: Dim) -> Dim:
        """State that the two stand or fall together, index by index; gives the label of both."""
        if isinstance(left, Fixed) and isinstance(right, Fixed):
            return left
        if isinstance(left, Fixed):
            left, right = right, left
        assert not isinstance(left, Fixed)
        if isinstance(right, Fixed):
            self.freeze(left, right.reason)
            return left
        assert left.shape == right.shape, (left.shape, right.shape)
        if left is not right:
            self.edges.append((left, right))
        return left

    def product(self, merged: IntArray, factors: Sequence[IntArray]) -> None:
        """State a :class:`Product`; ``merged`` is reshaped to the factors' sizes."""
        sizes = tuple(len(factor) for factor in factors)
        self.products.append(Product(merged.reshape(sizes), tuple(factors)))

    def freeze(self, dim: Dim, reason: Reason) -> None:
        """State that no index of ``dim`` may go."""
        if not isinstance(dim, Fixed):
            self.frozen.append((dim, reason))

    def mark_not_mask_equivalent(self, dim: Dim, reason: Reason) -> None:
        """State that removing an index of ``dim`` differs from zeroing it."""
        if not isinstance(dim, Fixed):
            self.not_mask_equivalent.append((dim, reason))

    def mark_mixed(self, across: Dim, within: Sequence[Dim]) -> None:
        """State that indices of ``within`` at different positions of ``across`` meet each other.

        Units of ``within`` can then not be chosen separately for each index of ``across``.
        """
        others = tuple(dim for dim in within if not isinstance(dim, Fixed))
        if not isinstance(across, Fixed) and others:
            self.mixed.append((across, others))

    def mark_balanced(self, pieces: Sequence[IntArray]) -> None:
        """State that the pieces are cut in equal lengths, so that equal numbers have to stay in each."""
        if len(pieces) > 1:
            self.balanced.append(tuple(pieces))
