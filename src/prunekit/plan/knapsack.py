"""Choosing a level of every lever: a multiple-choice knapsack with joint costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import scipy
from scipy.sparse import coo_array

from prunekit.plan.figures import Figure, Limit, Scope
from prunekit.plan.moves import along, moved_back, touching
from prunekit.types import IntArray

SOLVER_SECONDS = 20.0
"""That the exact solver may take."""

GAP = 0.005
"""How far its answer may be from the best there is, relative to that."""

SWEEPS, MULTIPLIERS = 30, 40


By = Literal["milp", "descent", "bracket", "uniform", "global", "isomorphic", "greedy"]
"""What chooses: a solver, the way between two plans that were measured, or a baseline."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """What was chosen.

    Attributes:
        levels: ``[levers]``.
        objective: the figure that was made least.
        by: ``milp`` or ``descent``, whichever was better; ``bracket``; or a baseline.
        proven: the solver showed that nothing is better by more than :data:`GAP`.
    """

    levels: IntArray
    objective: float
    by: By
    proven: bool


def choose(
    objective: Figure, limits: Sequence[Limit], sizes: Sequence[int], *, seconds: float = SOLVER_SECONDS
) -> Chosen | None:
    """Choose the levels at which ``objective`` is least and every limit is met.

    Both solvers run: the descent in a moment, then the mixed-integer programme for at most ``seconds``; the
    better answer is given.

    Args:
        objective: what to make least.
        limits: what has to be met.
        sizes: how many levels each lever has.
        seconds: for the exact solver; 0 leaves it out.

    Returns:
        None where nothing meets the limits.

    Source: latency-constrained pruning as a knapsack: Shen et al., 2022, Structural Pruning via
    Latency-Saliency Knapsack (HALP), section 3, https://arxiv.org/abs/2210.06659. Deviations: one choice of
    several levels for each group, joint costs of two widths as products of choices, made linear by
    :func:`solve_exactly`, depth among the choices, several limits.
    """
    quick = descend(objective, limits, sizes)
    exact = solve_exactly(objective, limits, sizes, seconds=seconds) if seconds > 0 else None
    found = [chosen for chosen in (exact, quick) if chosen is not None]
    return min(found, key=lambda chosen: chosen.objective) if found else None


def descend(objective: Figure, limits: Sequence[Limit], sizes: Sequence[int]) -> Chosen | None:
    """Lagrange multipliers: coordinate descent on ``objective + sum_i multiplier[i] * figure[i] / most[i]``.

    Every lever in turn takes the level that is best while the others stay, until none changes; the
    multipliers of limits that are broken grow and those of others shrink. The best answer seen that meets
    all limits is then improved: levers are moved back one by one where the limits allow it.

    Source: Everett, 1963, Generalized Lagrange Multiplier Method, https://doi.org/10.1287/opre.11.3.399.
    Deviation: the Lagrangian is made least by coordinate descent, which need not find its least value where
    costs are joint; the rule for the multipliers, and moving back, are ours.
    """
    last = np.array(sizes, dtype=np.int64) - 1
    nothing = np.zeros_like(last)
    if all(limit.is_met(nothing) for limit in limits):
        start = _descended(objective, [], np.array([]), sizes, nothing)
        if all(limit.is_met(start) for limit in limits):
            return Chosen(start, objective.at(start), "descent", proven=False)
    scale = max(abs(objective.at(last) - objective.at(nothing)), 1e-12)
    multipliers = np.full(len(limits), scale)
    best: IntArray | None = None
    levels, grows = last.copy(), np.full(len(limits), 4.0)
    for _ in range(MULTIPLIERS):
        levels = _descended(objective, limits, multipliers, sizes, levels)
        if all(limit.is_met(levels) for limit in limits) and (
            best is None or objective.at(levels) < objective.at(best)
        ):
            best = levels
        over = np.array([limit.figure.at(levels) > limit.most for limit in limits])
        multipliers = np.where(over, multipliers * grows, multipliers / grows)
        grows = np.maximum(np.sqrt(grows), 1.02)
    if best is None and all(limit.is_met(last) for limit in limits):
        best = last
    if best is None:
        return None
    best = moved_back(objective, limits, sizes, best)
    return Chosen(best, objective.at(best), "descent", proven=False)


def _descended(
    objective: Figure,
    limits: Sequence[Limit],
    multipliers: npt.NDArray[np.float64],
    sizes: Sequence[int],
    start: IntArray,
) -> IntArray:
    """Coordinate descent from ``start``."""
    terms: dict[Scope, npt.NDArray[np.float64]] = dict(objective.terms)
    for limit, multiplier in zip(limits, multipliers, strict=True):
        for scope, table in limit.figure.terms.items():
            weighted = table * (multiplier / limit.most)
            terms[scope] = terms[scope] + weighted if scope in terms else weighted
    scopes = touching(terms, len(sizes))
    levels = start.copy()
    for _ in range(SWEEPS):
        changed = False
        for place in range(len(sizes)):
            level = int(np.argmin(along(terms, scopes[place], levels, place, sizes[place])))
            changed |= level != levels[place]
            levels[place] = level
        if not changed:
            break
    return levels


def solve_exactly(
    objective: Figure, limits: Sequence[Limit], sizes: Sequence[int], *, seconds: float = SOLVER_SECONDS
) -> Chosen | None:
    """The same as a mixed-integer linear programme, solved by HiGHS.

    ``x[l, k]`` is 1 where lever ``l`` is at level ``k``. A table over several levers gets ``y >= 0`` for each
    combination, with ``sum of y over all other levers = x`` for each lever and level, so that ``y`` is 1 at
    the chosen combination and 0 elsewhere.

    Returns:
        None where there is none, or none was found in time.

    Source: the lifting of products of choices: Sherali and Adams, 1990, A Hierarchy of Relaxations,
    https://doi.org/10.1137/0403036, level 1 for pairs. Deviation: products only of choices that a table
    joins, so that the programme stays small and its relaxation is weaker. Solver: HiGHS (Huangfu and Hall,
    2018, https://doi.org/10.1007/s12532-017-0130-5) through :func:`scipy.optimize.milp`.
    """
    layout = _Layout([objective, *(limit.figure for limit in limits)], sizes)
    scale = max(abs(objective.at([size - 1 for size in sizes]) - objective.at([0] * len(sizes))), 1e-12)
    costs = layout.row(objective) / scale
    constraints = [layout.choices(), *layout.lifts()]
    for limit in limits:
        row = layout.row(limit.figure) / limit.most
        bound = (limit.most - limit.figure.constant) / limit.most
        constraints.append(scipy.optimize.LinearConstraint(row[None, :], -np.inf, bound))
    solved = scipy.optimize.milp(
        costs,
        constraints=constraints,
        bounds=scipy.optimize.Bounds(0, 1),
        integrality=layout.integrality,
        options={"time_limit": seconds, "mip_rel_gap": GAP},
    )
    if solved.x is None:
        return None
    levels = layout.levels(solved.x)
    if not all(limit.is_met(levels) for limit in limits):  # the solver's own tolerance
        levels = _mended(limits, sizes, levels)
        if levels is None:
            return None
    return Chosen(levels, objective.at(levels), "milp", proven=solved.status == 0)


def _mended(limits: Sequence[Limit], sizes: Sequence[int], levels: IntArray) -> IntArray | None:
    """One lever one level further, where the solver's tolerance left a limit broken by a hair."""
    for place, size in enumerate(sizes):
        if levels[place] + 1 < size:
            moved = levels.copy()
            moved[place] += 1
            if all(limit.is_met(moved) for limit in limits):
                return moved
    return None


class _Layout:
    """Where each variable lies: the choices of all levers, then the combinations of each scope."""

    def __init__(self, figures: Sequence[Figure], sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._first = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
        self._scopes: dict[Scope, int] = {}
        self.count = int(self._first[-1])
        for figure in figures:
            for scope, table in figure.terms.items():
                if len(scope) > 1 and scope not in self._scopes:
                    self._scopes[scope] = self.count
                    self.count += table.size
        self.integrality = np.zeros(self.count, dtype=np.int64)
        self.integrality[: self._first[-1]] = 1

    def row(self, figure: Figure) -> npt.NDArray[np.float64]:
        """The coefficients of a figure, but for its constant."""
        row = np.zeros(self.count)
        for scope, table in figure.terms.items():
            first = self._first[scope[0]] if len(scope) == 1 else self._scopes[scope]
            row[first : first + table.size] += table.ravel()
        return row

    def choices(self) -> scipy.optimize.LinearConstraint:
        """One level for each lever."""
        columns = np.arange(self._first[-1])
        rows = np.repeat(np.arange(len(self._sizes)), self._sizes)
        matrix = coo_array((np.ones(len(columns)), (rows, columns)), shape=(len(self._sizes), self.count))
        return scipy.optimize.LinearConstraint(matrix.tocsr(), 1, 1)

    def lifts(self) -> list[scipy.optimize.LinearConstraint]:
        """For each scope, lever and level: the combinations with that level add up to its choice."""
        rows, columns, values, row = [], [], [], 0
        for scope, first in self._scopes.items():
            shape = tuple(self._sizes[place] for place in scope)
            places = first + np.arange(int(np.prod(shape))).reshape(shape)
            for axis, place in enumerate(scope):
                for level, combined in enumerate(np.moveaxis(places, axis, 0)):
                    inside = combined.ravel()
                    rows += [row] * (len(inside) + 1)
                    columns += [*inside.tolist(), int(self._first[place] + level)]
                    values += [1.0] * len(inside) + [-1.0]
                    row += 1
        if not row:
            return []
        return [
            scipy.optimize.LinearConstraint(
                coo_array((values, (rows, columns)), shape=(row, self.count)).tocsr(), 0, 0
            )
        ]

    def levels(self, solution: npt.NDArray[np.float64]) -> IntArray:
        """The level of each lever."""
        return np.array(
            [
                int(np.argmax(solution[first : first + size]))
                for first, size in zip(self._first[:-1], self._sizes, strict=True)
            ],
            dtype=np.int64,
        )
