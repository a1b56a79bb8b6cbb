"""Closing in on goals between two plans that were measured, one on either side of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from prunekit.plan import Goal
from prunekit.plan.figures import Figure, Limit
from prunekit.plan.knapsack import Chosen
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
            least, most = (figures.surplus(goal, each.measured[str(goal)]) for each in self._ends)
            short, over = self._wrong(goal, figures)
            share = _place(0.0, least, most)
            found[str(goal)] = short ** (1 - share) * over**share
        return found

    def _wrong(self, goal: Goal, figures: GoalFigures) -> tuple[float, float]:
        """How many times its prediction the figure of either measured."""
        short, over = (figures.wrong(goal, each.measured[str(goal)], each.levels) for each in self._ends)
        return short, over

    def choose(
        self,
        objective: Figure,
        limits: Sequence[Limit],
        goals: Sequence[Goal],
        figures: GoalFigures,
        *,
        tried: Sequence[Attempt],
    ) -> Chosen | None:
        """The plan on the way from the one to the other that should just meet the goals.

        The one halfway, where the last two attempts fell on the same side: of what was expected of them too
        much was wrong. None where none is left but those tried.

        Args:
            objective: what to make least.
            limits: what has to be kept.
            goals: that were asked.
            figures: what the goals mean.
            tried: all that was measured.
        """
        known = {attempt.levels.tobytes() for attempt in tried}
        way = [levels for levels in self._way(objective, limits) if levels.tobytes() not in known]
        if not way:
            return None
        if _is_stuck(tried, goals, figures):
            levels = way[len(way) // 2]
        else:
            expected = np.min([self._expected(goal, figures, way) for goal in goals], axis=0)
            levels = way[int(np.abs(expected).argmin())]
        return Chosen(levels, objective.at(levels), "bracket", proven=False)

    def _way(self, objective: Figure, limits: Sequence[Limit]) -> Iterator[IntArray]:
        """From what is over to what falls short, one step of one lever after the other.

        First the levers that win back most of the objective for what they cost of the limits, each all the
        way. Neighbours differ by one step, so where one is over and the next falls short, nothing is between.
        """
        here, there = self.over.levels.copy(), self.short.levels

        def figures_at(levels: IntArray) -> tuple[float, float]:
            return objective.at(levels), sum(limit.figure.at(levels) / limit.most for limit in limits)

        def switched(lever: int) -> tuple[float, float]:
            levels = here.copy()
            levels[lever] = there[lever]
            lost, taken = figures_at(levels)
            return start[0] - lost, taken - start[1]

        start, end = figures_at(here), figures_at(there)
        price = max((start[0] - end[0]) / max(end[1] - start[1], 1e-12), 1e-12)
        worth = {
            lever: _share_of(won, price * cost)
            for lever in np.flatnonzero(here != there).tolist()
            for won, cost in [switched(lever)]
        }
        for lever in sorted(worth, key=worth.__getitem__, reverse=True):
            step = int(np.sign(there[lever] - here[lever]))
            while here[lever] != there[lever]:
                here[lever] += step
                if (here != there).any():
                    yield here.copy()

    def _expected(self, goal: Goal, figures: GoalFigures, way: Sequence[IntArray]) -> list[float]:
        """By how much each plan should exceed a goal, if it is wrong by something between the two."""
        short, over = self._wrong(goal, figures)
        ends = [figures.predicted(goal, each.levels) for each in self._ends]
        found = []
        for levels in way:
            share = _place(figures.predicted(goal, levels), *ends)
            figure = figures.corrected(goal, levels, short ** (1 - share) * over**share)
            found.append(figures.surplus(goal, figure))
        return found

    @property
    def _ends(self) -> tuple[Attempt, Attempt]:
        return self.short, self.over


def brackets_of(tried: Sequence[Attempt], goals: Sequence[Goal], figures: GoalFigures) -> list[Bracket]:
    """Every two attempts on either side of the goals, the nearest first; none where all lie on one side.

    Args:
        tried: what was measured.
        goals: that were asked.
        figures: what the goals mean.
    """
    scarce = {id(attempt): _scarcest(attempt, goals, figures) for attempt in tried}
    short = sorted((each for each in tried if scarce[id(each)] < 0), key=lambda each: -scarce[id(each)])
    over = sorted((each for each in tried if scarce[id(each)] >= 0), key=lambda each: scarce[id(each)])
    pairs = [Bracket(one, other) for one in short for other in over]
    return sorted(pairs, key=lambda pair: scarce[id(pair.over)] - scarce[id(pair.short)])


def _scarcest(attempt: Attempt, goals: Sequence[Goal], figures: GoalFigures) -> float:
    """By how much the goal that is exceeded least is."""
    return min(figures.surplus(goal, attempt.measured[str(goal)]) for goal in goals)


def _is_stuck(tried: Sequence[Attempt], goals: Sequence[Goal], figures: GoalFigures) -> bool:
    """The last two attempts fell on the same side."""
    last = [_scarcest(attempt, goals, figures) >= 0 for attempt in tried[-2:]]
    return len(last) == 2 and last[0] == last[1]


def _place(value: float, low: float, high: float) -> float:
    """Where a value lies between two others, in [0, 1]; in the middle where they are the same."""
    return 0.5 if low == high else float(np.clip((value - low) / (high - low), 0, 1))


def _share_of(won: float, paid: float) -> float:
    """In [-1, 1]: 1 where something is won for nothing, 0 where it is worth its price."""
    both = abs(won) + abs(paid)
    return (won - paid) / both if both else 0.0
