"""Moves of single levers: further until limits are met, and back again as far as they allow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from prunekit.plan.figures import Figure, Limit, Scope
from prunekit.types import IntArray

Vector = npt.NDArray[np.float64]
Terms = Mapping[Scope, npt.NDArray[np.float64]]

LEAST_COST = 1e-6
"""What a move takes of a limit counts as this much at least, relative to the limit."""


def touching(terms: Terms, count: int) -> list[list[Scope]]:
    """For each of ``count`` levers the scopes that it is in."""
    found: list[list[Scope]] = [[] for _ in range(count)]
    for scope in terms:
        for place in scope:
            found[place].append(scope)
    return found


def along(terms: Terms, scopes: Sequence[Scope], levels: IntArray, place: int, size: int) -> Vector:
    """``[size]`` the sum of what depends on one lever, at each of its levels, the others as they are."""
    total = np.zeros(size)
    for scope in scopes:
        index = tuple(slice(None) if other == place else int(levels[other]) for other in scope)
        total += terms[scope][index]
    return total


def moved_back(
    objective: Figure,
    limits: Sequence[Limit],
    sizes: Sequence[int],
    levels: IntArray,
    held: Collection[int] = (),
) -> IntArray:
    """Move levers to levels of less loss while the limits allow it, the largest gain for its cost first.

    The cost of a move is the product of the shares that it takes of the limits.

    Args:
        objective: what to make less.
        limits: met at ``levels``, and at what is returned.
        sizes: how many levels each lever has.
        levels: to begin with.
        held: levers that stay.
    """
    changes = _Changes([objective, *(limit.figure for limit in limits)], sizes)
    levels = levels.copy()
    while True:
        room = [limit.most * (1 + 1e-9) - limit.figure.at(levels) for limit in limits]
        best, move = 0.0, None
        for place in changes.free(held):
            change, *rises = changes.of(levels, place)
            fits = np.all([rise <= left for rise, left in zip(rises, room, strict=True)], axis=0)
            worth = np.where(fits & (change < -1e-15), -change, 0.0)
            for rise, limit in zip(rises, limits, strict=True):
                worth = worth / np.maximum(rise / limit.most, LEAST_COST)
            level = int(np.argmax(worth))
            if worth[level] > best:
                best, move = float(worth[level]), (place, level)
        if move is None:
            return levels
        levels[move[0]] = move[1]


def moved_on(
    objective: Figure,
    limits: Sequence[Limit],
    sizes: Sequence[int],
    levels: IntArray,
    held: Collection[int] = (),
) -> IntArray | None:
    """Move levers to later levels until the limits are met, the least loss for what it saves first.

    What a move saves is the sum over the limits that are broken of its part of each; a step may go over
    levels that save nothing.

    Args:
        objective: what should rise least.
        limits: met at what is returned.
        sizes: how many levels each lever has.
        levels: to begin with.
        held: levers that stay.

    Returns:
        None where no later level saves anything any more and a limit is still broken.
    """
    changes = _Changes([objective, *(limit.figure for limit in limits)], sizes)
    levels = levels.copy()
    while True:
        broken = [not limit.is_met(levels) for limit in limits]
        if not any(broken):
            return levels
        best, move = np.inf, None
        for place in changes.free(held):
            loss, *rises = changes.of(levels, place)
            saved = np.zeros(len(loss))
            for rise, limit, is_broken in zip(rises, limits, broken, strict=True):
                saved -= rise / limit.most * is_broken
            later = (np.arange(len(loss)) > levels[place]) & (saved > 1e-12)
            price = np.where(later, np.maximum(loss, 0) / np.where(later, saved, 1), np.inf)
            # Of equal prices, such as those of what loses nothing, the larger saving.
            level = int(np.lexsort((-saved, price))[0])
            if price[level] < best:
                best, move = float(price[level]), (place, level)
        if move is None:
            return None
        levels[move[0]] = move[1]


class _Changes:
    """By how much figures change when one lever moves."""

    def __init__(self, figures: Sequence[Figure], sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._figures = [(figure.terms, touching(figure.terms, len(sizes))) for figure in figures]

    def free(self, held: Collection[int]) -> list[int]:
        """The levers that may move."""
        return [place for place in range(len(self._sizes)) if place not in held]

    def of(self, levels: IntArray, place: int) -> list[Vector]:
        """For each figure ``[levels of the lever]``, the change when it goes there."""
        found = []
        for terms, scopes in self._figures:
            values = along(terms, scopes[place], levels, place, self._sizes[place])
            found.append(values - values[levels[place]])
        return found
