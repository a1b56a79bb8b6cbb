"""Sharing out a sparsity by measured curves: what losing so much of each parameter costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import scipy
from scipy.sparse import csr_array, eye_array, hstack

from prunekit.errors import GoalError, SelectionError
from prunekit.plan.scope import Pieces, Pool

Curve = tuple[tuple[float, float], ...]
"""Points (sparsity, increase of the loss), ascending, from (0, 0) on; between them the line."""


@dataclass(frozen=True)
class BySensitivity:
    """Share a sparsity out so that the measured increases of the loss add up to the least.

    ``minimise sum_l curve[l](s[l])`` with ``sum_l n[l] * s[l] = sparsity * sum_l n[l]``, where a curve is the
    straight lines between its points. That increases add up is the assumption behind it.

    Attributes:
        curves: by parameter, by sparsity, the increase of the loss; (0, 0) is added. No parameter goes
            beyond the last point of its curve. From :func:`prunekit.surgery.measure_sensitivity`.
        method: ``exact`` solves it as a mixed-integer programme; ``greedy`` goes along the lower convex hull
            of every curve, always taking the cheapest next stretch, which is exact where curves are convex.

    Raises:
        SelectionError: curves that are none, or an unknown method.

    Source: greedy: the hull of each curve as in Shoham and Gersho, 1988, Efficient Bit Allocation for an
    Arbitrary Set of Quantizers, https://doi.org/10.1109/29.90373; exact: a knapsack as in Aflalo et al.,
    2020, Knapsack Pruning with Inner Distillation, https://arxiv.org/abs/2002.08258. Deviations: measured
    losses in place of both papers' terms; several sparsities for each parameter, of which one is chosen;
    lines between the points, so that the total is met exactly.
    """

    curves: Mapping[str, Mapping[float, float]]
    method: Literal["exact", "greedy"] = "exact"

    def __post_init__(self) -> None:
        if self.method not in ("exact", "greedy"):
            raise SelectionError(
                f"The method is {self.method!r}", expected="'exact' or 'greedy'", where="scope"
            )
        for name, points in self.curves.items():
            numbers = [*points, *points.values()]
            if not points or not all(math.isfinite(number) for number in numbers):
                raise SelectionError(
                    f"The curve has the points {dict(points)}", expected="numbers", where=name
                )
            if min(points) < 0 or max(points) > 1 or not max(points):
                raise SelectionError(
                    f"The curve goes from {min(points)} to {max(points)}",
                    expected="sparsities from 0 to 1, at least one above 0",
                    where=name,
                )

    def __str__(self) -> str:
        return f"sensitivity ({self.method})"

    def pools(self, pieces: Pieces, sparsity: float) -> tuple[Pool, ...]:
        """One pool for each parameter.

        Raises:
            SelectionError: a parameter has no curve.
            GoalError: the curves do not go far enough.
        """
        counts = {weight.name: weight.count for weight in pieces.weights}
        if missing := [name for name in counts if name not in self.curves]:
            raise SelectionError(
                f"There is no curve for {', '.join(missing[:5])}",
                expected="one for each parameter",
                where="scope",
                remedy="Measure it with measure_sensitivity(), or leave the parameter out with ignore=",
            )
        curves = {name: curve_of(self.curves[name]) for name in counts}
        removed = sparsity * sum(counts.values())
        most = math.fsum(counts[name] * curve[-1][0] for name, curve in curves.items())
        if removed > most * (1 + 1e-12):
            raise GoalError(
                f"The sparsity {sparsity} is beyond the measured curves",
                expected=f"at most {most / sum(counts.values()):.4f}",
                where="sparsity",
                remedy="Measure the curves at higher sparsities, or ask for less",
            )
        solve = _exact if self.method == "exact" else _greedy
        return pieces.by_share(solve(curves, counts, removed), sparsity)


def curve_of(points: Mapping[float, float]) -> Curve:
    """The points of a curve in order, from (0, 0) on."""
    return tuple(sorted({**points, 0.0: 0.0}.items()))


def _greedy(curves: Mapping[str, Curve], counts: Mapping[str, int], removed: float) -> dict[str, float]:
    """Go along the hulls, the cheapest stretch by loss for each weight first."""
    stretches = [
        ((after[1] - before[1]) / ((after[0] - before[0]) * counts[name]), order, name, before[0], after[0])
        for order, (name, curve) in enumerate(curves.items())
        for before, after in pairwise(_lower_hull(curve))
    ]
    shares = dict.fromkeys(curves, 0.0)
    for _, _, name, start, end in sorted(stretches):
        taken = min(removed, (end - start) * counts[name])
        shares[name] = end if taken == (end - start) * counts[name] else start + taken / counts[name]
        removed -= taken
        if removed <= 0:
            break
    return shares


def _lower_hull(curve: Curve) -> list[tuple[float, float]]:
    """The corners of the largest convex line below the points (Andrew's monotone chain)."""
    hull: list[tuple[float, float]] = []
    for x, y in curve:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0:
                break
            hull.pop()
        hull.append((x, y))
    return hull


def _exact(curves: Mapping[str, Curve], counts: Mapping[str, int], removed: float) -> dict[str, float]:
    """Choose one stretch of each curve (binary) and a place on it (continuous)."""
    total = sum(counts.values())
    stretches = [(name, before, after) for name, curve in curves.items() for before, after in pairwise(curve)]
    count = len(stretches)
    cost = np.array(
        [before[1] for _, before, _ in stretches] + [after[1] - before[1] for _, before, after in stretches]
    )
    share = np.array([counts[name] / total for name, _, _ in stretches])
    base = share * [before[0] for _, before, _ in stretches]
    slope = share * [after[0] - before[0] for _, before, after in stretches]
    row = {name: number for number, name in enumerate(curves)}
    of_curve = ([row[name] for name, _, _ in stretches], list(range(count)))
    one_each = csr_array((np.ones(count), of_curve), shape=(len(curves), 2 * count))
    on_chosen = hstack([-eye_array(count), eye_array(count)], format="csr")
    constraints = [
        scipy.optimize.LinearConstraint(one_each, 1, 1),
        scipy.optimize.LinearConstraint(on_chosen, -np.inf, 0),
        scipy.optimize.LinearConstraint(
            np.concatenate([base, slope])[None, :], removed / total, removed / total
        ),
    ]
    scale = float(np.abs(cost).max()) or 1.0
    solved = scipy.optimize.milp(
        cost / scale,
        constraints=constraints,
        bounds=scipy.optimize.Bounds(0, 1),
        integrality=np.repeat([1, 0], count),
        options={"mip_rel_gap": 0},
    )
    if solved.x is None:
        raise GoalError(
            f"No shares meet the sparsity {removed / total}: {solved.message}",
            where="sparsity",
            remedy="Ask for less, or use method='greedy'",
        )
    chosen, place = solved.x[:count] > 0.5, solved.x[count:]
    shares = {
        name: before[0] + (after[0] - before[0]) * min(1.0, max(0.0, where))
        for (name, before, after), taken, where in zip(stretches, chosen, place, strict=True)
        if taken
    }
    return _settled(shares, {name: curve[-1][0] for name, curve in curves.items()}, counts, removed)


def _settled(
    shares: dict[str, float], most: Mapping[str, float], counts: Mapping[str, int], removed: float
) -> dict[str, float]:
    """Take up the solver's tolerance, so that the total is met to rounding."""
    for name in sorted(shares, key=lambda name: -counts[name]):
        lacks = removed - math.fsum(shares[other] * counts[other] for other in shares)
        shares[name] = min(most[name], max(0.0, shares[name] + lacks / counts[name]))
    return shares
