"""Patterns: in what pieces single weights are kept or go. Frozen values, three kinds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from prunekit.errors import SelectionError, ShapeError
from prunekit.importance import WeightTensor


def _are_counts(*sizes: object) -> bool:
    return all(isinstance(size, int) and not isinstance(size, bool) for size in sizes)


@dataclass(frozen=True)
class Element:
    """Every weight by itself."""

    def __str__(self) -> str:
        return "element"

    def piece(self, weight: WeightTensor) -> tuple[int, int]:
        """Rows and columns of a piece."""
        return 1, 1


@dataclass(frozen=True)
class NOfM:
    """Of every ``m`` successive inputs of an output, ``n`` weights are kept.

    The inputs are the columns of :class:`prunekit.importance.WeightTensor`'s matrix; those of a convolution
    are counted over its input channels first and then over the kernel's positions, the order in which
    hardware multiplies them.

    Attributes:
        n: kept, in ``[1, m - 1]``.
        m: of so many.

    Raises:
        SelectionError: other numbers.

    Source: Mishra et al., 2021, Accelerating Sparse Deep Neural Networks, section 3,
    https://arxiv.org/abs/2104.08378. Deviation: any n and m.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not _are_counts(self.n, self.m) or not 0 < self.n < self.m:
            raise SelectionError(
                f"The pattern keeps {self.n} of {self.m}",
                expected="whole numbers, 1 <= n < m",
                where="pattern",
            )

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:
        """The fraction that it removes."""
        return 1 - self.n / self.m

    def piece(self, weight: WeightTensor) -> tuple[int, int]:
        """Rows and columns of a piece: one weight.

        Raises:
            ShapeError: the inputs do not divide by ``m``.
        """
        _, columns = weight.matrix_shape
        if columns % self.m:
            raise _does_not_divide(weight, f"{columns} inputs", self.m, self)
        return 1, 1


@dataclass(frozen=True)
class Block:
    """Weights stand or fall in blocks of so many successive outputs and inputs.

    A vector is a block of one row (``Block(1, 8)``) or one column (``Block(8, 1)``).

    Attributes:
        rows: outputs; None = all of them, a whole column.
        columns: inputs, counted as in :class:`NOfM`; None = all of them, a whole row.

    Raises:
        SelectionError: other numbers, or None twice.
    """

    rows: int | None
    columns: int | None

    def __post_init__(self) -> None:
        sizes = [size for size in (self.rows, self.columns) if size is not None]
        if not sizes or not _are_counts(*sizes) or min(sizes) < 1:
            raise SelectionError(
                f"The block has {self.rows} rows and {self.columns} columns",
                expected="whole numbers >= 1, at most one of them None (all)",
                where="pattern",
            )

    def __str__(self) -> str:
        whole = {(1, None): "row", (None, 1): "column"}.get((self.rows, self.columns))
        return whole or f"{self.rows or '*'}x{self.columns or '*'}"

    def piece(self, weight: WeightTensor) -> tuple[int, int]:
        """Rows and columns of a piece of this parameter.

        Raises:
            ShapeError: the parameter does not divide into such blocks.
        """
        rows, columns = weight.matrix_shape
        high, wide = self.rows or rows, self.columns or columns
        for size, piece, what in ((rows, high, "outputs"), (columns, wide, "inputs")):
            if size % piece:
                raise _does_not_divide(weight, f"{size} {what}", piece, self)
        return high, wide


Pattern = Element | NOfM | Block

ROW, COLUMN = Block(1, None), Block(None, 1)
"""All weights of one output, and all that read one input."""


def parse_pattern(given: Pattern | str) -> Pattern:
    """Read ``element``, ``2:4``, ``4x8`` (rows x columns, ``*`` = all), ``row`` or ``column``.

    Raises:
        SelectionError: something else.
    """
    if isinstance(given, Pattern):
        return given
    named = {"element": Element(), "row": ROW, "column": COLUMN}
    if isinstance(given, str):
        if given in named:
            return named[given]
        if found := re.fullmatch(r"(\d+):(\d+)", given, re.ASCII):
            return NOfM(int(found[1]), int(found[2]))
        if found := re.fullmatch(r"(\d+|\*)x(\d+|\*)", given, re.ASCII):
            rows, columns = (None if size == "*" else int(size) for size in found.groups())
            return Block(rows, columns)
    raise SelectionError(
        f"There is no pattern {given!r}",
        expected="'element', 'row', 'column', such as '2:4' (n of m) or '4x8' (rows x columns)",
        where="pattern",
    )


def sparsity_of(given: float | None, pattern: Pattern) -> float:
    """The fraction that goes: the one given, or the one that a pattern n:m has.

    Raises:
        SelectionError: it is no fraction, or contradicts the pattern.
    """
    if isinstance(pattern, NOfM):
        if given is not None and abs(given - pattern.sparsity) > 1e-9:
            raise pattern_alone(pattern)
        return pattern.sparsity
    if isinstance(given, bool) or not isinstance(given, Real) or not 0 <= float(given) <= 1:
        raise SelectionError(f"The sparsity is {given!r}", expected="a number from 0 to 1", where="sparsity")
    return float(given)


def pattern_alone(pattern: NOfM) -> SelectionError:
    """What is said where a sparsity or a scope is given beside n:m."""
    return SelectionError(
        f"The pattern {pattern} has the sparsity {pattern.sparsity:.4g} in every group",
        expected="no other sparsity and no scope beside it",
        where="pattern",
        remedy="Leave sparsity and scope out",
    )


def score_pieces(scores: Tensor, piece: tuple[int, int], power: float) -> Tensor:
    """Score each piece by the power mean of its weights.

    ``score[p] = (mean_i |s[i]| ** power) ** (1 / power)``, of infinite power the largest.

    Args:
        scores: ``[rows, columns]``, any float dtype.
        piece: rows and columns of a piece, which divide those of the matrix.
        power: > 0; 1 orders pieces of a matrix as their L1 norm does, 2 as the L2 norm.

    Returns:
        ``[rows / piece rows, columns / piece columns]``; of single weights the scores themselves, else
        float32, or float64 where the scores are.
    """
    high, wide = piece
    if piece == (1, 1):
        return scores
    rows, columns = scores.shape
    tiles = scores.reshape(rows // high, high, columns // wide, wide).abs()
    if not tiles.dtype.itemsize > 4:
        tiles = tiles.float()
    if math.isinf(power):
        return tiles.amax((1, 3))
    return tiles.pow(power).mean((1, 3)).pow(1 / power)


def spread(kept: Tensor, piece: tuple[int, int]) -> Tensor:
    """Give every weight of a piece what the piece has: ``[pieces, pieces]`` into ``[rows, columns]``."""
    high, wide = piece
    if piece == (1, 1):
        return kept
    return kept.repeat_interleave(high, 0).repeat_interleave(wide, 1)


def _does_not_divide(weight: WeightTensor, size: str, by: int, pattern: Pattern) -> ShapeError:
    return ShapeError(
        f"Its shape {list(weight.shape)} has {size}, which do not divide by {by}",
        expected=f"a multiple of {by} for the pattern '{pattern}'",
        where=f"weight '{weight.name}'",
        remedy=f"Leave it out with find_weights(model, ignore='{weight.name}'), or choose another pattern",
    )


def as_grid(weight: WeightTensor, scores: Tensor, pattern: Pattern, in_rows: bool) -> Tensor:
    """The scores as a matrix; where neither pattern nor scope asks what the inputs are, one flat row."""
    if isinstance(pattern, Element) and not in_rows:
        return scores.reshape(1, -1)
    return weight.to_matrix(scores)


def from_grid(weight: WeightTensor, kept: Tensor, pattern: Pattern, in_rows: bool) -> Tensor:
    """:func:`as_grid` backwards: a mask in the parameter's shape."""
    if isinstance(pattern, Element) and not in_rows:
        return kept.reshape(weight.shape)
    return weight.from_matrix(kept).contiguous().to(torch.bool)
