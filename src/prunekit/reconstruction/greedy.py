"""Exact greedy removal (OBS): always what costs least once the rest has been updated. Computed on the CPU."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.errors import SelectionError, ShapeError
from prunekit.plan import Block, NOfM, Pattern
from prunekit.plan.pattern import parse_pattern
from prunekit.reconstruction.damping import DAMPING, factor
from prunekit.reconstruction.least_squares import Solution, guarded
from prunekit.reconstruction.sparsegpt import Choice, Swept

AT_ONCE = 2**24
"""Numbers in the inverses that are held at once."""


@dataclass(frozen=True)
class Removals:
    """What went, in which order, at which cost.

    Attributes:
        order: ids of the sets, the first removed first.
        errors: squared difference of the outputs, dampening included, after each removal and the update of
            what is left; it does not fall.
        weight: ``[out, in]`` float64 after the last of them, exactly 0 in the removed columns.
        damping: that was used.
    """

    order: tuple[int, ...]
    errors: tuple[float, ...]
    weight: Tensor
    damping: float


def remove_sets(
    weight: Tensor, moment: Tensor, sets: Sequence[Sequence[int]], count: int, *, damping: float = DAMPING
) -> Removals:
    """Remove sets of input columns (heads, channels) one by one, updating the others each time.

    The set with the least ``sum_rows w_S (G_SS)^-1 w_S.T`` goes, ``G`` the inverse of the dampened second
    moment of the inputs that are left; then ``W -= W_S (G_SS)^-1 G_S`` and ``G -= G_:S (G_SS)^-1 G_S:``.
    What is scored is so the error of the remaining weights after compensation.

    Args:
        weight: ``[out, in]``.
        moment: ``H = X.T X``, ``[in, in]``.
        sets: disjoint columns of each set; they need not cover all inputs.
        count: how many sets go.
        damping: as a fraction of the mean of the diagonal.

    Raises:
        ShapeError: the shapes do not fit, or the sets overlap or lie outside.
        SelectionError: more sets are to go than there are.
        CalibrationError: NaN or infinity in ``moment``.

    Source: Kurtic et al., 2023 (ZipLM), eqs. 3-4 and Algorithm 1, https://arxiv.org/abs/2302.04089.
    """
    weight, moment = weight.cpu(), moment.cpu()
    inputs = _check(weight, moment)
    columns = [column for group in sets for column in group]
    if len(set(columns)) < len(columns) or any(not 0 <= column < inputs for column in columns):
        raise ShapeError("The sets overlap or lie outside", expected=f"disjoint columns below {inputs}")
    if not 0 <= count <= len(sets):
        raise SelectionError(f"{count} sets are to go", expected=f"0 to {len(sets)}", where="count")
    inverse, used = inverse_of(moment, damping)
    trace = Trace(weight.double()[None], inverse[None], padded(sets))
    free = torch.ones(1, len(sets), dtype=torch.bool)
    order, errors, total = [], [], 0.0
    for _ in range(count):
        chosen, costs = trace.step(free)
        order.append(int(chosen))
        free[0, order[-1]] = False
        total += float(costs)
        errors.append(total)
    return Removals(tuple(order), tuple(errors), trace.weight[0], used)


def remove_weights(
    weight: Tensor,
    moment: Tensor,
    *,
    count: int | None = None,
    pattern: Pattern | str = "element",
    damping: float = DAMPING,
) -> Swept:
    """Remove single weights or blocks one by one, updating the others of their rows each time.

    Every output (of blocks, so many successive ones, which share a mask) is emptied greedily; of all these
    sequences together the ``count`` steps that cost least are taken, each sequence from its beginning. With
    n:m each output keeps ``n`` of every ``m`` successive inputs.

    Args:
        weight: ``[out, in]``.
        moment: ``H = X.T X``, ``[in, in]``.
        count: how many weights (blocks) go; n:m has its own count.
        pattern: ``element``, n:m such as ``2:4``, or blocks such as ``2x4``, which divide ``[out, in]``.
        damping: as a fraction of the mean of the diagonal.

    Returns:
        The mask and the weights that are the least-squares optimum for it.

    Raises:
        ShapeError: shapes that do not fit or do not divide.
        SelectionError: no pattern, a count beside n:m or none without, or an impossible one.
        CalibrationError: NaN or infinity in ``moment``.

    Source: Frantar & Alistarh, 2022 (OBC), Algorithms 1 and 2, eqs. 3-5, https://arxiv.org/abs/2208.11580.
    Deviation: blocks may span several outputs. Time grows as ``out * in^3``: some hundred inputs.
    """
    weight, moment = weight.cpu(), moment.cpu()
    inputs = _check(weight, moment)
    wanted = parse_pattern(pattern)
    high, wide = 1, 1
    if isinstance(wanted, Block):
        high, wide = wanted.rows or len(weight), wanted.columns or inputs
    if len(weight) % high or inputs % wide:
        raise ShapeError(f"{list(weight.shape)} does not divide by blocks of {wanted}", where="pattern")
    n_of_m = wanted if isinstance(wanted, NOfM) else None
    steps = _steps(weight, count, n_of_m, (high, wide))
    inverse, used = inverse_of(moment, damping)
    sets = torch.arange(inputs).reshape(-1, wide)
    groups = weight.double().reshape(-1, high, inputs)
    at_once = max(1, AT_ONCE // max(1, inputs * inputs))
    found = [_emptied(part, inverse, sets, steps, n_of_m) for part in groups.split(at_once)]
    orders, costs = (torch.cat(parts) for parts in zip(*found, strict=True))
    taken = torch.full((len(groups),), steps) if n_of_m is not None else _cheapest(costs, count or 0)
    several = zip(groups.split(at_once), orders.split(at_once), taken.split(at_once), strict=True)
    parts = [_replayed(part, inverse, sets, goes, until) for part, goes, until in several]
    gone = torch.zeros(len(groups), inputs // wide, dtype=torch.bool)
    gone.scatter_(1, orders, torch.arange(orders.shape[1]) < taken[:, None])
    keep = ~gone.repeat_interleave(high, 0).repeat_interleave(wide, 1)
    solved = torch.cat(parts).reshape(weight.shape)
    solution: Solution = guarded(weight.double(), solved, keep, moment.double(), used)
    return Swept(solution, keep)


class Trace:
    """Weights and inverses of several problems while sets of columns go, in each another one.

    Attributes:
        weight: ``[problems, rows, in]``.
    """

    def __init__(self, weight: Tensor, inverse: Tensor, sets: Tensor) -> None:
        self.weight = weight.clone()
        self._inverse = inverse.expand(len(weight), -1, -1).clone()
        self._sets = sets

    def step(self, free: Tensor) -> tuple[Tensor, Tensor]:
        """Remove from each problem the set of those ``free`` that costs least; which, and its cost.

        Of equal costs the first goes.
        """
        costs = self.costs(free)
        chosen = costs.argmin(1)
        self.take(chosen)
        return chosen, costs.gather(1, chosen[:, None])[:, 0]

    def costs(self, free: Tensor) -> Tensor:
        """``[problems, sets]`` what each set would cost, infinity where it is not ``free``."""
        sets = self._sets
        inner = self._inverse[:, sets.clamp_min(0)[:, :, None], sets.clamp_min(0)[:, None, :]]
        absent = sets < 0
        either = absent[:, :, None] | absent[:, None, :]
        inner = torch.where(either, torch.eye(sets.shape[1], dtype=inner.dtype), inner)
        taken = ~(free[:, :, None, None])
        inner = torch.where(taken, torch.eye(sets.shape[1], dtype=inner.dtype), inner)
        values = self.weight[:, :, sets.clamp_min(0)].masked_fill(absent, 0.0).movedim(1, 2)
        costs = (torch.linalg.solve(inner, values.mT).mT * values).sum((2, 3))
        return costs.masked_fill(~free, torch.inf)

    def take(self, chosen: Tensor, where: Tensor | None = None) -> None:
        """Remove the set ``chosen`` from each problem (only those ``where``) and update what is left."""
        columns = self._sets[chosen]
        width = self.weight.shape[2]
        real = (columns >= 0) if where is None else (columns >= 0) & where[:, None]
        at = columns.clamp_min(0)
        across = self._inverse.gather(1, at[:, :, None].expand(-1, -1, width))
        across = across * real[:, :, None]
        inner = across.gather(2, at[:, None, :].expand(-1, len(self._sets[0]), -1)) * real[:, None, :]
        inner = inner + torch.diag_embed((~real).double())
        spread = torch.linalg.solve(inner, across)
        rows = self.weight.shape[1]
        values = self.weight.gather(2, at[:, None, :].expand(-1, rows, -1)) * real[:, None, :]
        self.weight -= values @ spread
        self._inverse -= across.mT @ spread
        gone = torch.zeros(len(chosen), width, dtype=torch.int64).scatter_add_(1, at, real.long()) > 0
        self.weight.masked_fill_(gone[:, None, :], 0.0)
        self._inverse.masked_fill_(gone[:, :, None] | gone[:, None, :], 0.0)


def _emptied(
    part: Tensor, inverse: Tensor, sets: Tensor, steps: int, n_of_m: NOfM | None
) -> tuple[Tensor, Tensor]:
    """``[problems, steps]`` which set goes at each step, and at what cost."""
    trace = Trace(part, inverse[None], sets)
    gone = torch.zeros(len(part), len(sets), dtype=torch.bool)
    orders = torch.zeros(len(part), steps, dtype=torch.int64)
    costs = torch.zeros(len(part), steps, dtype=torch.float64)
    for step in range(steps):
        free = ~gone
        if n_of_m is not None:
            full = gone.reshape(len(part), -1, n_of_m.m).sum(2) >= n_of_m.m - n_of_m.n
            free &= ~full.repeat_interleave(n_of_m.m, 1)
        orders[:, step], costs[:, step] = trace.step(free)
        gone.scatter_(1, orders[:, step : step + 1], True)
    return orders, costs


def _replayed(part: Tensor, inverse: Tensor, sets: Tensor, orders: Tensor, until: Tensor) -> Tensor:
    """The weights after the first ``until`` steps of each sequence."""
    trace = Trace(part, inverse[None], sets)
    for step in range(int(until.max()) if len(until) else 0):
        trace.take(orders[:, step], until > step)
    return trace.weight


def _cheapest(costs: Tensor, count: int) -> Tensor:
    """``[problems]`` how many steps of each sequence are taken: always the cheapest that comes next."""
    rows = costs.tolist()
    taken = [0] * len(rows)
    heads = [(row[0], problem) for problem, row in enumerate(rows) if row]
    heapq.heapify(heads)
    for _ in range(count):
        _, problem = heapq.heappop(heads)
        taken[problem] += 1
        if taken[problem] < len(rows[problem]):
            heapq.heappush(heads, (rows[problem][taken[problem]], problem))
    return torch.tensor(taken, dtype=torch.int64)


def _steps(weight: Tensor, count: int | None, n_of_m: NOfM | None, block: tuple[int, int]) -> int:
    """The steps of each sequence that may be needed."""
    rows, inputs = weight.shape
    if (count is None) == (n_of_m is None):
        raise SelectionError("Give how many go or n:m", expected="one of count and a pattern n:m")
    if n_of_m is not None:
        Choice(pattern=n_of_m).check_inputs(inputs)
        return inputs // n_of_m.m * (n_of_m.m - n_of_m.n)
    assert count is not None
    pieces = rows // block[0] * (inputs // block[1])
    if not 0 <= count <= pieces:
        raise SelectionError(f"{count} are to go", expected=f"0 to {pieces}", where="count")
    return min(count, inputs // block[1])


def inverse_of(moment: Tensor, damping: float) -> tuple[Tensor, float]:
    """The inverse of the dampened second moments, float64, and the dampening that was used."""
    lower, used = factor(moment.double(), damping)
    return torch.cholesky_inverse(lower), used


def padded(sets: Sequence[Sequence[int]]) -> Tensor:
    """``[sets, longest]`` int64; -1 behind the end of a shorter set."""
    longest = max((len(group) for group in sets), default=0)
    return torch.tensor([[*group, *[-1] * (longest - len(group))] for group in sets], dtype=torch.int64)


def _check(weight: Tensor, moment: Tensor) -> int:
    inputs = weight.shape[1] if weight.ndim == 2 else -1
    if moment.shape != (inputs, inputs):
        raise ShapeError(
            f"The weight has the shape {list(weight.shape)}, the second moments {list(moment.shape)}",
            expected="[out, in] and [in, in]",
        )
    return inputs
