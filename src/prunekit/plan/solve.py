"""Finding the point of a path, or beside it, whose figure comes within the tolerance of the asked one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from prunekit.plan.goal import Goal
from prunekit.plan.path import Path
from prunekit.types import BoolArray, IntArray

FINE_GROUPS = 5
FINE_REACH = 4
TRIES = (8, 8, 16, 32)
MOST_CALLS = 58
SMALL_SPACE = 16384
"""Among at most so many combinations of counts those near the path are listed ..."""
MOST_COMBINATIONS = 1024
"""... and at most so many of them tried one by one."""


@dataclass(frozen=True)
class Point:
    """Levels of all groups and the figure they leave."""

    levels: IntArray
    left: int


class Meter:
    """Reads the figure at given levels, each point once, and remembers those that a plan may have."""

    def __init__(self, path: Path, figure: Callable[[IntArray], int]) -> None:
        self._path = path
        self._figure = figure
        self._seen: dict[bytes, Point] = {}
        self._near: list[Point] = []

    def __call__(self, levels: IntArray) -> Point:
        """The figure at ``levels``."""
        key = levels.astype(np.int64).tobytes()
        if key not in self._seen:
            self._seen[key] = point = Point(levels, self._figure(levels))
            if self._path.is_near(levels):
                self._near.append(point)
        return self._seen[key]

    @property
    def calls(self) -> int:
        """How often the figure was computed."""
        return len(self._seen)

    def nearest(self, asked: int) -> Point:
        """The point whose figure is nearest, of those seen near the path; of two the one that keeps more."""
        return min(self._near, key=lambda point: (abs(point.left - asked), -point.left))


def solve(path: Path, figure: Callable[[IntArray], int], goal: Goal, asked: int) -> Point:
    """Find levels near the path whose figure is within the goal's tolerance of the asked one.

    1. Bisect the path: the figure falls with every step, so the asked one lies between two neighbours.
    2. Where both miss (one step is wider than the tolerance), leave the path by a few steps: measure what one
       step of each neighbouring group changes, predict all small combinations, and try the best.
    3. Where that misses too and the model is small, try every combination of counts, from the neighbours
       on.

    No point is taken that lies further from the path than :mod:`prunekit.plan.leeway` allows.

    Args:
        path: the steps.
        figure: what is left at given levels; never rises when a level rises.
        goal: says what counts as reached.
        asked: the figure to reach.

    Returns:
        The nearest point found; ``goal.is_reached(point.left, asked)`` may be false.
    """
    meter = Meter(path, figure)
    steps = _bisect(path, meter, asked)
    if goal.is_reached(meter.nearest(asked).left, asked):
        return meter.nearest(asked)
    if not meter(path.last_levels).left < asked < meter(path.levels(0)).left:
        return meter.nearest(asked)
    base = meter(path.levels(steps))
    for tries in TRIES:
        _try_beside(path, steps, base, meter, goal, asked, tries)
        base = meter.nearest(asked)
        if goal.is_reached(base.left, asked) or meter.calls >= MOST_CALLS:
            break
    if not goal.is_reached(base.left, asked):
        for levels in _combinations_near(path, path.levels(steps)):
            if goal.is_reached(meter(levels).left, asked):
                break
    return meter.nearest(asked)


def _bisect(path: Path, meter: Meter, asked: int) -> int:
    """The last number of steps that leaves at least the asked figure; measures it and the next one."""
    low, high = 0, len(path.order)
    if meter(path.levels(high)).left >= asked:
        return high
    if meter(path.levels(low)).left < asked:
        return low
    while high - low > 1:
        middle = (low + high) // 2
        if meter(path.levels(middle)).left >= asked:
            low = middle
        else:
            high = middle
    return low


def _try_beside(
    path: Path, steps: int, base: Point, meter: Meter, goal: Goal, asked: int, tries: int
) -> None:
    """Try the combinations of a few steps beside ``base`` that should come nearest to the asked figure."""
    near = dict.fromkeys(int(g) for g in itertools.chain(path.order[steps:], path.order[:steps][::-1]))
    changes: dict[int, float] = {}
    for group in itertools.islice(near, 2 * FINE_GROUPS):
        direction = 1 if base.levels[group] < path.last_levels[group] else -1
        one = np.zeros_like(base.levels)
        one[group] = direction
        changes[group] = (meter(base.levels + one).left - base.left) * direction
        if goal.is_reached(meter.nearest(asked).left, asked):
            return
    widest = next(iter(near))
    finest = sorted(changes, key=lambda group: abs(changes[group]))
    chosen = [widest, *(group for group in finest if group != widest)][:FINE_GROUPS]
    span = np.arange(-FINE_REACH, FINE_REACH + 1)
    moves = np.stack(np.meshgrid(*[span] * len(chosen), indexing="ij"), axis=-1).reshape(-1, len(chosen))
    wanted = base.levels[chosen] + moves
    moves = moves[((wanted >= 0) & (wanted <= path.last_levels[chosen])).all(axis=1)]
    moves = moves[_stay_near(path, base.levels, chosen, moves)]
    miss = np.abs(base.left + moves @ np.array([changes[group] for group in chosen]) - asked)
    distance = np.abs(moves).sum(axis=1)
    beyond = np.maximum(miss - goal.tolerance * asked / 2, 0)
    for index in np.lexsort((miss, distance, beyond))[:tries]:
        levels = base.levels.copy()
        levels[chosen] += moves[index]
        if goal.is_reached(meter(levels).left, asked) or meter.calls >= MOST_CALLS:
            return


def _stay_near(path: Path, levels: IntArray, chosen: list[int], moves: IntArray) -> BoolArray:
    """``[moves]`` whether the point is near the path once the chosen groups have moved."""
    others = [group for group in range(len(levels)) if group not in set(chosen)]
    first, last = path.places(levels[others], others)
    first_moved, last_moved = path.places(levels[chosen] + moves, chosen)
    return np.maximum(first, first_moved) <= np.minimum(last, last_moved)


def _combinations_near(path: Path, start: IntArray) -> Iterator[IntArray]:
    """The combinations of levels near the path, those fewest steps from ``start`` first; none if too many."""
    if math.prod(int(last) + 1 for last in path.last_levels) <= SMALL_SPACE:
        every = np.indices(tuple((path.last_levels + 1).tolist())).reshape(len(start), -1).T
        levels = every[path.is_near(every)]
        distance = np.abs(levels - start).sum(axis=1)
        yield from levels[np.argsort(distance, kind="stable")][:MOST_COMBINATIONS]
