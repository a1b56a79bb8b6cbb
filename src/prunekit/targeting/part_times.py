"""What operations take inside of a model, told from what others took in models that were timed whole."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import exp, log
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from prunekit.measure.operation import Operation
from prunekit.targeting.in_context import Parts
from prunekit.targeting.likeness import Matrix, Vector, alike, apart, place_of
from prunekit.targeting.operator_times import OperatorTimes

OWN = 0.3
"""The part of the variance that an operation has to itself, however near another is."""

SPREADS = (0.1, 0.2, 0.4, 0.8)
"""Standard deviations of the logarithms of operations' times around their trend; the likeliest is taken."""

NOISES = (0.05, 0.1, 0.2, 0.4)
"""The same of one and the same operation in different models."""

DOUBLINGS = (0.5, 1.0, 2.0)
"""How far apart two operations' sizes are where they have little to do with each other."""

PRIOR = 0.1
"""How much the prior of the trend counts, that times are those alone; 1 is one operation."""

COVERED = 0.8
"""The share of a family's time alone, in the models, of which parts have to be known."""


class _Parameters(NamedTuple):
    doublings: float
    spread: float
    noise: float


@dataclass(frozen=True, eq=False)
class PartTimes:
    """Times of operations in context, by family.

    ``log ms = trend + g + noise``: the trend is linear in the logarithms of what timing the operation by
    itself took, of its MACs and of the numbers that it moves; ``g`` is a Gaussian process over the logarithms
    to base 2 of its sizes, with a part that each operation has to itself; the noise differs from model to
    model, and as parts are scaled to add up to what their model takes, it evens out there. What is expected
    of ``ms`` is ``exp(mean + variance / 2)`` without the noise: of two operations that should take the same,
    the one that less is known of counts more, so that choosing the least of many errs less towards those that
    only seem fast.

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
        """Expected milliseconds of one operation; None where too little like it was timed in a model."""
        if operation not in self._known:
            family = self.families.get(_family(operation)) if operation.is_timed else None
            if family is None:
                return None
            self._known[operation] = family.ms(operation, _traits(self.times, operation))
        return self._known[operation]


def fit_part_times(
    times: OperatorTimes,
    models: Iterable[tuple[Sequence[Operation], Parts]],
    like: PartTimes | None = None,
) -> PartTimes:
    """Fit times in context, family by family.

    Args:
        times: of all the operations alone.
        models: the operations of each, and which parts of it are known.
        like: a fit whose parameters are taken for the families it has; default: those that are likeliest.
    """
    seen: dict[Hashable, dict[Operation, list[float]]] = {}
    alone: dict[Hashable, list[float]] = {}
    for operations, parts in models:
        for operation in operations if parts else ():
            if operation.is_timed:
                known, every = alone.setdefault(_family(operation), [0.0, 0.0])
                ms = times.ms[operation]
                alone[_family(operation)] = [known + ms * (operation in parts), every + ms]
        for operation, (count, ms) in parts.items():
            seen.setdefault(_family(operation), {}).setdefault(operation, []).append(log(ms / count))
    families = {}
    for family, some in seen.items():
        known, every = alone[family]
        if known >= COVERED * every:
            before = like.families.get(family) if like is not None else None
            families[family] = _fitted(times, some, before and before.parameters)
    return PartTimes(families, times)


@dataclass(frozen=True, eq=False)
class _Family:
    """Operations of one family that were timed in models.

    Attributes:
        trend: coefficients of the traits.
        numbers: of each operation.
        places: ``[operations, sizes]``.
        parameters: of the process, the likeliest.
        factor: of its covariance.
        weights: ``[operations]``, what the trend leaves over the covariance.
    """

    trend: Vector
    numbers: dict[Operation, int]
    places: Matrix
    parameters: _Parameters
    factor: Any
    weights: Vector

    def ms(self, operation: Operation, traits: Vector) -> float:
        doublings, spread, _ = self.parameters
        shared = (1 - OWN) * alike(apart(self.places, place_of(operation)[None]), doublings)[:, 0]
        number = self.numbers.get(operation)
        if number is not None:
            shared[number] += OWN
        shared *= spread**2
        variance = max(0.0, spread**2 - float(shared @ cho_solve(self.factor, shared)))
        return exp(float(traits @ self.trend) + float(shared @ self.weights) + variance / 2)


def _fitted(
    times: OperatorTimes, seen: dict[Operation, list[float]], parameters: _Parameters | None
) -> _Family:
    traits = np.array([_traits(times, operation) for operation in seen])
    counts = np.array([len(logs) for logs in seen.values()])
    means = np.array([sum(logs) / len(logs) for logs in seen.values()])
    scatter = sum(float(((np.array(logs) - np.mean(logs)) ** 2).sum()) for logs in seen.values())
    weights = counts * np.exp(means)
    trend = _trend(traits, means, weights / weights.mean())
    left, places = means - traits @ trend, np.stack([*map(place_of, seen)])
    distances, best, found = apart(places, places), -np.inf, None
    for each in [parameters] if parameters else map(_Parameters._make, product(DOUBLINGS, SPREADS, NOISES)):
        prior = (1 - OWN) * alike(distances, each.doublings) + OWN * np.eye(len(left))
        factor = cho_factor(each.spread**2 * prior + np.diag(each.noise**2 / counts), lower=True)
        solved = cho_solve(factor, left)
        likely = -0.5 * float(left @ solved) - float(np.log(np.diag(factor[0])).sum())
        # How the same operations differ from model to model: what their means do not tell of.
        likely -= 0.5 * scatter / each.noise**2 + (counts.sum() - len(counts)) * log(each.noise)
        if likely > best:
            best, found = likely, (each, factor, solved)
    assert found is not None, "some parameters are the likeliest"
    return _Family(trend, {operation: place for place, operation in enumerate(seen)}, places, *found)


def _trend(traits: Matrix, logs: Vector, weights: Vector) -> Vector:
    """Ridge regression towards the time alone, times any factor; operations count by what they take."""
    prior = np.array([1.0, 0.0, 0.0, 0.0])
    drawn = PRIOR * np.diag([1.0, 1.0, 1.0, 1e-6])
    weighted = traits.T * weights
    found = np.linalg.solve(weighted @ traits + drawn, weighted @ logs + drawn @ prior)
    return np.asarray(found, dtype=np.float64)


def _traits(times: OperatorTimes, operation: Operation) -> Vector:
    figures = [times.ms[operation], max(operation.macs, 1), max(operation.moved, 1)]
    return np.array([*np.log(figures), 1.0])


def _family(operation: Operation) -> Hashable:
    grouped = operation.setting("groups") not in (1, None)
    return operation.kind, grouped, tuple(map(len, operation.inputs[:2]))
