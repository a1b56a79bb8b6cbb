"""SparseGPT: weights go column by column, and each column's error moves to the columns after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunekit.errors import SelectionError, ShapeError
from prunekit.plan import Block, NOfM, Pattern
from prunekit.plan.pattern import parse_pattern, sparsity_of
from prunekit.reconstruction.damping import DAMPING, factor
from prunekit.reconstruction.least_squares import Solution, guarded


@dataclass(frozen=True)
class Sweep:
    """How the columns are gone through.

    Attributes:
        order: ``natural``, or ``diagonal``: inputs with the largest second moment first (of N:M, the groups
            of M inputs), which is what GPTQ calls activation order.
        block_size: columns whose updates are gathered before those behind them follow; it changes the time,
            and the last bits of the result.
        selection_size: columns among whose weights those that go are chosen at once; None = ``block_size``.
        damping: as a fraction of the mean of the diagonal.

    Raises:
        SelectionError: an unknown order, a size below 1.
    """

    order: Literal["natural", "diagonal"] = "natural"
    block_size: int = 128
    selection_size: int | None = None
    damping: float = DAMPING

    def __post_init__(self) -> None:
        if self.order not in ("natural", "diagonal"):
            raise SelectionError(
                f"There is no order {self.order!r}", expected="'natural' or 'diagonal'", where="order"
            )
        for name in ("block_size", "selection_size"):
            size = getattr(self, name)
            if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
                raise SelectionError(f"It is {size!r}", expected="a whole number >= 1", where=name)


@dataclass(frozen=True)
class Choice:
    """What is to go where no mask is given; said as for :func:`prunekit.plan.select_weights`.

    Attributes:
        sparsity: the fraction of a layer's weights that goes, in ``[0, 1]``; exact up to rounding to a whole
            number, whatever ties there are. A pattern n:m has its own.
        pattern: ``element``, or n:m such as ``2:4``: of so many successive inputs of an output so many stay.

    Raises:
        SelectionError: another pattern, a sparsity that is none or that contradicts the pattern.
    """

    sparsity: float | None = None
    pattern: Pattern | str = "element"

    def __post_init__(self) -> None:
        pattern = parse_pattern(self.pattern)
        if isinstance(pattern, Block):
            raise SelectionError(
                f"The pattern is '{pattern}'", expected="'element', or n:m such as '2:4'", where="pattern"
            )
        object.__setattr__(self, "pattern", pattern)
        object.__setattr__(self, "sparsity", sparsity_of(self.sparsity, pattern))

    @property
    def n_of_m(self) -> NOfM | None:
        """The pattern, where it is n:m."""
        return self.pattern if isinstance(self.pattern, NOfM) else None

    def check_inputs(self, inputs: int, where: str = "") -> None:
        """Refuse a number of inputs that the choice cannot be made over.

        Raises:
            ShapeError: the inputs do not divide by ``m``.
        """
        if self.n_of_m is not None and inputs % self.n_of_m.m:
            raise ShapeError(
                f"It has {inputs} inputs",
                expected=f"a multiple of {self.n_of_m.m} for {self.n_of_m}",
                where=where,
                remedy="Leave the layer out with ignore=, or choose another pattern",
            )


@dataclass(frozen=True)
class Swept:
    """What a sweep gives.

    Attributes:
        solution: the weights, exactly 0 where they are not kept.
        keep: ``[out, in]`` bool; True = keep.
    """

    solution: Solution
    keep: Tensor


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the sweeps of all layers that read the same inputs need.

    Attributes:
        moment: ``H``, ``[in, in]``.
        order: of the columns, ``[in]``; None = as they are.
        upper: ``U``, the upper Cholesky factor of ``(H + d I)^-1`` in that order, ``[in, in]``.
        damping: that was used, as a fraction of the mean of the diagonal.
    """

    moment: Tensor
    order: Tensor | None
    upper: Tensor
    damping: float


def prepare(moment: Tensor, choice: Choice | None, sweep: Sweep) -> Prepared:
    """Order and factor the second moments.

    Raises:
        CalibrationError: NaN or infinity in ``moment``.
    """
    moment = moment if moment.dtype == torch.float32 else moment.double()
    order = None if sweep.order == "natural" else _by_size(moment, choice)
    upper, used = _upper(moment if order is None else moment[order][:, order], sweep.damping)
    return Prepared(moment, order, upper.to(moment.dtype), used)


def sparsegpt(
    weight: Tensor,
    moment: Tensor | Prepared,
    *,
    choice: Choice | None = None,
    keep: Tensor | None = None,
    sweep: Sweep | None = None,
) -> Swept:
    """Remove weights column by column, moving each column's error to those behind it.

    With ``U`` the upper Cholesky factor of ``(H + d I)^-1``: weights with the least ``(w / U_jj)^2`` go; for
    each column ``e = w_j (1 - mask_j) / U_jj`` and ``W[:, j:] -= e U[j, j:]``. A row that comes out worse
    than without the update keeps its old weights.

    Args:
        weight: ``[out, in]``, any float dtype.
        moment: ``H = X.T X``, ``[in, in]``; of float64 or float32, in which all is then computed. Or what
            :func:`prepare` made of it for the same choice and sweep, where several layers read the same.
        choice: what goes; or
        keep: ``[out, in]`` bool, the mask where it was decided elsewhere.
        sweep: order, block sizes and dampening.

    Raises:
        SelectionError: not one of ``choice`` and ``keep``.
        ShapeError: shapes that do not fit; N:M over inputs that do not divide by M.
        CalibrationError: NaN or infinity in ``moment``.

    Source: Frantar & Alistarh, 2023, Algorithm 1, https://arxiv.org/abs/2301.00774. Deviations: exact counts
    where weights tie; inputs that are always 0 need no case of their own, as they are dampened; bad rows as
    above.
    """
    sweep = sweep or Sweep()
    inputs = weight.shape[1] if weight.ndim == 2 else -1
    given = moment.moment if isinstance(moment, Prepared) else moment
    if given.shape != (inputs, inputs) or (keep is not None and keep.shape != weight.shape):
        raise ShapeError(
            f"The weight has the shape {list(weight.shape)}, the second moments {list(given.shape)}",
            expected="[out, in] and [in, in], and a mask like the weight",
        )
    if (choice is None) == (keep is None):
        raise SelectionError("Give what is to go or a mask", expected="one of choice and keep")
    if choice is not None:
        choice.check_inputs(inputs)
    ready = moment if isinstance(moment, Prepared) else prepare(moment, choice, sweep)
    wide, order = weight.to(ready.moment.dtype), ready.order
    columns, kept = wide.T, None if keep is None else keep.T
    if order is not None:
        columns, kept = columns[order], None if kept is None else kept[order]
    solved, mask = _sweep(columns, ready.upper, choice, kept, sweep)
    if order is not None:
        back = torch.argsort(order)
        solved, mask = solved[back], mask[back]
    solved, mask = solved.masked_fill_(~mask, 0.0).T.contiguous(), mask.T.contiguous()
    return Swept(guarded(wide, solved, mask, ready.moment, ready.damping), mask)


def _by_size(moment: Tensor, choice: Choice | None) -> Tensor:
    together = 1 if choice is None or choice.n_of_m is None else choice.n_of_m.m
    size = moment.diagonal().reshape(-1, together).sum(1)
    first = torch.argsort(size, descending=True, stable=True) * together
    return (first[:, None] + torch.arange(together, device=moment.device)).flatten()


def _upper(moment: Tensor, damping: float) -> tuple[Tensor, float]:
    """The upper Cholesky factor of the dampened inverse; in float64 where float32 does not do."""
    lower, used = factor(moment, damping)
    inverse = torch.cholesky_inverse(lower)
    del lower  # Of wide layers each of these is as large as their weights.
    upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
    del inverse
    bad = int(failed) != 0 or not bool(torch.isfinite(upper).all())
    if moment.dtype == torch.float32 and (bad or used != damping):
        return _upper(moment.double(), damping)
    return (upper, used) if not bad else _upper(moment, max(used * 10, 1e-10))


def _sweep(
    weight: Tensor, upper: Tensor, choice: Choice | None, keep: Tensor | None, sweep: Sweep
) -> tuple[Tensor, Tensor]:
    """The weights, not yet zeroed, and the mask, both ``[in, out]`` in the order of the sweep.

    Turned like that, so that the numbers of one input lie together.
    """
    weight = weight.clone(memory_format=torch.contiguous_format)
    inputs, rows = weight.shape
    mask = torch.ones_like(weight, dtype=torch.bool) if keep is None else keep.contiguous()
    at_once = _selected_at_once(choice, sweep)
    diagonal = upper.diagonal().tolist()
    for start in range(0, inputs, sweep.block_size):
        stop = min(start + sweep.block_size, inputs)
        block = weight[start:stop]
        errors = weight.new_zeros(stop - start, rows)
        for column in range(start, stop):
            if choice is not None and column % at_once == 0:
                end = min(column + at_once, inputs)
                ahead = weight[column:end]
                if end > stop:  # The columns behind the block have not followed yet.
                    ahead = ahead.clone()
                    ahead[stop - column :] -= upper[start:column, stop:end].T @ errors[: column - start]
                score = (ahead / upper.diagonal()[column:end, None]).square()
                mask[column:end] = _choose(score.T, choice, column).T
            place = column - start
            error = errors[place]
            torch.div(block[place], diagonal[column], out=error)
            error.masked_fill_(mask[column], 0.0)
            block[place:].addr_(upper[column, column:stop], error, alpha=-1)
        weight[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    return weight, mask


def _selected_at_once(choice: Choice | None, sweep: Sweep) -> int:
    if choice is not None and choice.n_of_m is not None:
        return choice.n_of_m.m
    return sweep.selection_size or sweep.block_size


def _choose(score: Tensor, choice: Choice, start: int) -> Tensor:
    """``[out, columns]`` what stays of these columns; of equal scores the first go."""
    rows, columns = score.shape
    mask = torch.ones_like(score, dtype=torch.bool)
    if choice.n_of_m is not None:
        gone = torch.argsort(score, dim=1, stable=True)[:, : choice.n_of_m.m - choice.n_of_m.n]
        return mask.scatter_(1, gone, False)
    assert choice.sparsity is not None
    until, so_far = (round(choice.sparsity * rows * end) for end in (start + columns, start))
    return ~lowest(score.flatten(), until - so_far).view(score.shape)


def lowest(scores: Tensor, count: int) -> Tensor:
    """Mark exactly ``count`` of the lowest scores, of equal ones the first: by a partition, without a sort.

    Args:
        scores: ``[n]``, finite.
        count: in ``[0, n]``.

    Returns:
        ``[n]`` bool.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count).values
    found = scores < threshold
    equal = (scores == threshold).nonzero().flatten()
    found[equal[: count - int(found.sum())]] = True
    return found
