"""Closing in on goals between two plans that were measured, one on either side of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from prunekit.plan import Goal
from prunekit.plan.figures import Figure, Limit, figure_of
from prunekit.plan.knapsack import Chosen, choose
from prunekit.targeting.attempts import Attempt
from prunekit.targeting.goal_figures import GoalFigures
from prunekit.types import IntArray


@dataclass(frozen=True, eq=False)
class Bracket:
    """Two attempts: one misses a goal, the other more than meets them all.

    A plan whose levels lie between theirs, lever by lever, shares most of their choices, so that what the
    model of cost has wrong about it lies between what it has wrong about them. A new plan takes the place of
    one of the two, and there are ever fewer in between.

    Attributes:
        short: it misses a goal.
        over: it more than meets them all.
    """

    short: Attempt
    over: Attempt

    def correction(self, goals: Sequence[Goal], figures: GoalFigures) -> dict[str, float]:
        """By goal, how many times its prediction a figure should measure where the goal is just met.

        Interpolated as a power between the two, by where the goal lies between what they measured.
        """
        found = {}
        for goal in goals:
            measured = [each.measured[str(goal)] for each in (self.short, self.over)]
            wrong = [figures.wrong(goal, *each) for each in zip(measured, self._levels, strict=True)]
            least, most = (figures.surplus(goal, each) for each in measured)
            share = 0.5 if most == least else min(1.0, max(0.0, least / (least - most)))
            found[str(goal)] = wrong[0] ** (1 - share) * wrong[1] ** share
        return found

    def choose(
        self, objective: Figure, limits: Sequence[Limit], *, seconds: float, tried: Sequence[Attempt]
    ) -> Chosen | None:
        """The best plan between the two that keeps the limits; None where there is none but those tried.

        Args:
            objective: what to make least.
            limits: what has to be kept.
            seconds: for the exact solver.
            tried: all that was measured.
        """
        low, high = np.min(self._levels, axis=0), np.max(self._levels, axis=0)
        inside = [replace(limit, figure=_cropped(limit.figure, low, high)) for limit in limits]
        found = choose(_cropped(objective, low, high), inside, (high - low + 1).tolist(), seconds=seconds)
        if found is None or any((found.levels + low == attempt.levels).all() for attempt in tried):
            return None
        return replace(found, levels=found.levels + low)

    @property
    def _levels(self) -> tuple[IntArray, IntArray]:
        return self.short.levels, self.over.levels


def bracket_of(tried: Sequence[Attempt], goals: Sequence[Goal], figures: GoalFigures) -> Bracket | None:
    """The nearest attempts on either side of the goals; None where all lie on one side.

    Args:
        tried: what was measured.
        goals: that were asked.
        figures: what the goals mean.
    """

    def scarcest(attempt: Attempt) -> float:
        return min(figures.surplus(goal, attempt.measured[str(goal)]) for goal in goals)

    short = [attempt for attempt in tried if scarcest(attempt) < 0]
    over = [attempt for attempt in tried if scarcest(attempt) >= 0]
    if not short or not over:
        return None
    return Bracket(max(short, key=scarcest), min(over, key=scarcest))


def _cropped(figure: Figure, low: IntArray, high: IntArray) -> Figure:
    """The same figure with the levels from low to high alone."""
    terms = (
        (scope, table[tuple(slice(int(low[place]), int(high[place]) + 1) for place in scope)])
        for scope, table in figure.terms.items()
    )
    return figure_of(terms, figure.constant)
