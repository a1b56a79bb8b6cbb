"""The closed table of criteria."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prunekit.importance.baseline import score_random
from prunekit.importance.gradient import FIRST_ORDER, score_taylor
from prunekit.importance.magnitude import per_slice, score_l1, score_l2
from prunekit.importance.view import GroupView, Rows


@dataclass(frozen=True)
class Criterion:
    """One way to tell how much a unit matters.

    Laws, tested for every row of :data:`CRITERIA`: scores are finite and >= 0, higher = keep; they follow a
    permutation of the units (those that are drawn excepted); the same inputs give the same scores; the model
    is only read; a group's scores do not depend on which other groups are scored.

    Attributes:
        name: its key in :data:`CRITERIA`.
        needs: the calibration statistics it reads; empty = no data needed.
        rows: what scores a group: ``[rows, units]`` float64, one row per slice, or a single row where the
            formula spans the slices by itself; NaN where a unit has no part in a row.
        summary: one line for tables and reports.
        source: where the formula comes from.
    """

    name: str
    needs: frozenset[str]
    rows: Callable[[GroupView], Rows]
    summary: str
    source: str


CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion
    for criterion in (
        Criterion(
            name="l1",
            needs=frozenset(),
            rows=per_slice(score_l1),
            summary="sum of the magnitudes of the unit's parameters",
            source="Li et al., 2017, https://arxiv.org/abs/1608.08710",
        ),
        Criterion(
            name="l2",
            needs=frozenset(),
            rows=per_slice(score_l2),
            summary="Euclidean norm of the unit's parameters",
            source="Fang et al., 2023, https://arxiv.org/abs/2301.12900",
        ),
        Criterion(
            name="taylor",
            needs=frozenset({FIRST_ORDER}),
            rows=score_taylor,
            summary="first-order change of the loss when the unit goes, on calibration data",
            source="Molchanov et al., 2017 and 2019, https://arxiv.org/abs/1906.10771",
        ),
        Criterion(
            name="random",
            needs=frozenset(),
            rows=score_random,
            summary="a draw that knows nothing about the unit: the baseline",
            source="Mittal et al., 2018, https://arxiv.org/abs/1801.10447",
        ),
    )
}
"""Every criterion by name."""
