"""What operations take inside of a model, told from what others took in models that were timed whole."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from itertools import product
from math import exp
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

from prunekit.measure.operation import Operation
from prunekit.targeting.in_context import Parts
from prunekit.targeting.operator_times import OperatorTimes

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

OWN = 0.3
"""The part of the variance that an operation has to itself, however near another is."""

SPREADS = (0.1, 0.2, 0.4, 0.8)
"""Standard deviations of the logarithms of operations' times around their trend; the likeliest is taken."""

NOISES = (0.05, 0.1, 0.2, 0.4)
"""The same of one and the same operation in different models."""

DOUBLINGS = (0.5, 1.0, 2.0)
"""How far apart two operations' sizes are where they have little to do with each other."""

PRIOR = 0.1
"""How much the prior of the trend counts, that times are those of the operations alone; 1 is one part."""


@dataclass(frozen=True, eq=False)
class PartTimes:
    """Times of operations in context, by family.

    ``log ms = trend + g``: the trend is linear in the logarithms of the operation's time alone, of its MACs
    and of the numbers that it moves; ``g`` is a Gaussian process over the logarithms to base 2 of its sizes,
    with a part that each operation has to itself. What is expected of ``ms`` is
    ``exp(mean + variance / 2)``: of two operations that should take the same, the one that less is known of
    counts more, so that choosing the least of many errs less towards those that only seem fast.

    Source: Rasmussen and Williams, 2006, Gaussian Processes for Machine Learning, algorithm 2.1 and section
    2.7 (linear trends, here fitted before); mean of a lognormal: Aitchison and Brown, 1957; choosing by
    estimates: Smith and Winkler, 2006, The Optimizer's Curse, https://doi.org/10.1287/mnsc.1050.0451.

    Attributes:
        families: those that parts were timed of.
        times: of operations alone.
    """

    families: dict[Hashable, _Family]
    times: OperatorTimes
    _known: dict[Operation, float] = field(default_factory=dict)

    def of(self, operation: Operation) -> float | None:
        """Expected milliseconds of one operation; None where nothing like it was timed in a model."""
        if operation not in self._known:
            family = self.families.get(_family(operation)) if operation.is_timed else None
            if family is None:
                return None
            self._known[operation] = family.ms(operation, _traits(self.times, operation))
        return self._known[operation]


def fit_part_times(times: OperatorTimes, models: Iterable[Parts]) -> PartTimes:
    """Fit times in context, family by family.

    Args:
        times: of all the operations alone.
        models: the parts of each.
    """
    seen: dict[Hashable, list[tuple[Operation, float]]] = {}
    for parts in models:
        for operation, (count, ms) in parts.items():
            seen.setdefault(_family(operation), []).append((operation, ms / count))
    return PartTimes({family: _fitted(times, some) for family, some in seen.items()}, times)


@dataclass(frozen=True, eq=False)
class _Family:
    """Operations of one family that were timed in models.

    Attributes:
        trend: coefficients of the traits.
        operations: one for each part.
        places: ``[parts, sizes]``.
        spread, noise, doublings: of the process, the likeliest.
        factor: of its covariance.
        weights: ``[parts]``, covariance divided into what the trend leaves.
    """

    trend: Vector
    operations: tuple[Operation, ...]
    places: Matrix
    spread: float
    noise: float
    doublings: float
    factor: Any
    weights: Vector

    def ms(self, operation: Operation, traits: Vector) -> float:
        near = _alike(_apart(self.places, _place(operation)[None]), self.doublings)[:, 0]
        own = np.array([each == operation for each in self.operations], dtype=float)
        shared = self.spread**2 * ((1 - OWN) * near + OWN * own)
        variance = max(0.0, self.spread**2 - float(shared @ cho_solve(self.factor, shared)))
        return exp(float(traits @ self.trend) + float(shared @ self.weights) + variance / 2)


def _fitted(times: OperatorTimes, seen: list[tuple[Operation, float]]) -> _Family:
    operations = tuple(operation for operation, _ in seen)
    ms = np.array([each for _, each in seen])
    traits = np.array([_traits(times, operation) for operation in operations])
    trend = _trend(traits, np.log(ms), ms / ms.mean())
    left = np.log(ms) - traits @ trend
    places = np.stack([*map(_place, operations)])
    apart = _apart(places, places)
    numbers = {operation: number for number, operation in enumerate(dict.fromkeys(operations))}
    which = np.array([numbers[operation] for operation in operations])
    same = (which[:, None] == which[None]).astype(float)
    best, found = -np.inf, None
    for doublings, spread, noise in product(DOUBLINGS, SPREADS, NOISES):
        prior = spread**2 * ((1 - OWN) * _alike(apart, doublings) + OWN * same)
        factor = cho_factor(prior + noise**2 * np.eye(len(left)), lower=True)
        weights = cho_solve(factor, left)
        likely = -0.5 * float(left @ weights) - float(np.log(np.diag(factor[0])).sum())
        if likely > best:
            best, found = likely, (spread, noise, doublings, factor, weights)
    assert found is not None, "some parameters are the likeliest"
    return _Family(trend, operations, places, *found)


def _trend(traits: Matrix, logs: Vector, weights: Vector) -> Vector:
    """Ridge regression towards the time alone, times any factor; parts count by what they take."""
    prior = np.array([1.0, 0.0, 0.0, 0.0])
    drawn = PRIOR * np.diag([1.0, 1.0, 1.0, 1e-6])
    weighted = traits.T * weights
    found = np.linalg.solve(weighted @ traits + drawn, weighted @ logs + drawn @ prior)
    return np.asarray(found, dtype=np.float64)


def _traits(times: OperatorTimes, operation: Operation) -> Vector:
    return np.array([*np.log([times.ms[operation], max(operation.macs, 1), max(operation.moved, 1)]), 1.0])


def _family(operation: Operation) -> Hashable:
    grouped = operation.setting("groups") not in (1, None)
    return operation.kind, grouped, len(_place(operation))


def _place(operation: Operation) -> Vector:
    """The logarithms of the sizes of the first two inputs and the output."""
    sizes = [size for shape in (*operation.inputs[:2], operation.output) for size in shape]
    return np.log2(np.maximum(sizes, 1).astype(np.float64))


def _apart(one: Matrix, other: Matrix) -> Matrix:
    return ((one[:, None] - other[None]) ** 2).sum(axis=2)


def _alike(apart: Matrix, doublings: float) -> Matrix:
    return np.exp(-apart / (2 * doublings**2))
