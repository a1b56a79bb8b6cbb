"""Limits that no plan keeps: which of them no plan keeps together, how far each goes, what comes nearest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prunekit.plan.figures import Figure, Limit
from prunekit.plan.knapsack import choose
from prunekit.types import IntArray

QUESTION_SECONDS = 2.0
"""That the exact solver may take for each question."""

NEAR = 0.01
"""By how much, relative to the bounds, the nearest plan may miss its limits by more than it has to."""


@dataclass(frozen=True, eq=False)
class Beyond:
    """Why no plan keeps all of several limits; a limit is told by its place.

    Attributes:
        alone: those that no plan keeps, whatever becomes of the others.
        together: where there is none of these, the fewest that no plan keeps together: without any one of
            them the others can be kept.
        least: for each limit the levels at which its figure is least, whatever becomes of the others.
        beside: for each of ``together`` the levels at which its figure is least while the others are kept.
        nearest: the levels at which the limit that is missed by the most, relative to its bound, is missed by
            the least.
    """

    alone: tuple[int, ...]
    together: tuple[int, ...]
    least: tuple[IntArray, ...]
    beside: Mapping[int, IntArray]
    nearest: IntArray


def why_beyond(
    objective: Figure, limits: Sequence[Limit], sizes: Sequence[int], *, seconds: float = QUESTION_SECONDS
) -> Beyond:
    """Find out why the limits cannot be kept; all of it as predicted by their figures.

    Args:
        objective: what to make least among plans that miss the limits by equally much.
        limits: at least one, which no plan keeps together.
        sizes: how many levels each lever has.
        seconds: that the exact solver may take for each question.
    """
    least = tuple(_least(limit.figure, sizes, seconds) for limit in limits)
    alone = tuple(
        place
        for place, (limit, levels) in enumerate(zip(limits, least, strict=True))
        if not limit.is_met(levels)
    )
    together = () if alone else _fewest(limits, sizes, seconds)
    beside = {}
    for place in together:
        others = [limits[other] for other in together if other != place]
        found = choose(limits[place].figure, others, sizes, seconds=seconds)
        if found is not None:  # No solver proves that there is none; they say what they found.
            beside[place] = found.levels
    nearest = _nearest(objective, limits, sizes, [*least, *beside.values()], seconds)
    return Beyond(alone, together, least, beside, nearest)


def _least(figure: Figure, sizes: Sequence[int], seconds: float) -> IntArray:
    """The levels at which a figure is least."""
    found = choose(figure, (), sizes, seconds=seconds)
    assert found is not None, "there is no limit"
    return found.levels


def _fewest(limits: Sequence[Limit], sizes: Sequence[int], seconds: float) -> tuple[int, ...]:
    """Limits that cannot be kept together, while all but any one of them can: each is left out in turn."""
    left = list(range(len(limits)))
    for place in range(len(limits)):
        others = [other for other in left if other != place]
        held = [limits[other] for other in others]
        if held and choose(held[0].figure, held, sizes, seconds=seconds) is None:
            left = others
    return tuple(left)


def _nearest(
    objective: Figure,
    limits: Sequence[Limit],
    sizes: Sequence[int],
    known: Sequence[IntArray],
    seconds: float,
) -> IntArray:
    """Bisection over the factor by which all bounds are widened.

    It lies between that of the best plan that is known and what the limits miss by one by one.
    """

    def factor(levels: IntArray) -> float:
        return max(limit.figure.at(levels) / limit.most for limit in limits)

    best = min(known, key=factor)
    low = max(1.0, *(min(limit.figure.at(levels) for levels in known) / limit.most for limit in limits))
    high = factor(best)
    while high > low * (1 + NEAR):
        middle = (low * high) ** 0.5
        wider = [Limit(limit.figure, limit.most * middle) for limit in limits]
        found = choose(objective, wider, sizes, seconds=seconds)
        if found is None:
            low = middle
        else:
            best, high = found.levels, min(middle, factor(found.levels))
    return best
