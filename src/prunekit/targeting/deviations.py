"""How far single operations are off inside of models, found out from what whole models took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from prunekit.measure.operation import Operation
from prunekit.targeting.likeness import Matrix, Vector, alike, apart, place_of

DOUBLINGS = 2.0
"""How far apart two operations' sizes are where their errors have little to do with each other."""

SPREADS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Standard deviations of relative errors of operations, of which the likeliest is taken."""

NOISES = (0.01, 0.02, 0.05)
"""The same of measured times of whole models."""


@dataclass(frozen=True, eq=False)
class Deviations:
    """Relative errors of the predicted times of operations; those of similar ones are alike.

    ``deviation(o) = sum_p weight[p] * exp(-|x_o - x_p| ** 2 / (2 DOUBLINGS ** 2))`` over operations p of the
    same family, where ``x`` holds the logarithms to base 2 of all sizes.

    Attributes:
        weights: by operation; none for no deviations.
    """

    weights: Mapping[Operation, float]

    def of(self, operation: Operation) -> float:
        """The relative error of an operation's predicted time, 0 where nothing is known; may be below -1."""
        known = self._families.get(_family(operation))
        if known is None:
            return 0.0
        places, weights = known
        return float(weights @ alike(apart(places, place_of(operation)[None]), DOUBLINGS)[:, 0])

    @cached_property
    def _families(self) -> dict[Any, tuple[Matrix, Vector]]:
        """By family ``[operations, sizes]`` places and ``[operations]`` weights."""
        found: dict[Any, list[Operation]] = {}
        for operation in self.weights:
            found.setdefault(_family(operation), []).append(operation)
        return {
            family: (np.stack([*map(place_of, each)]), np.array([self.weights[one] for one in each]))
            for family, each in found.items()
        }


class Residuals:
    """What models took beyond what their operations are predicted to take.

    A Gaussian process of mean 0 says the relative error of each operation, so that a model's residual is the
    sum of its operations' times, each times its error; what the models took says the rest. How large errors
    and noise are is what makes the residuals likeliest, of :data:`SPREADS` and :data:`NOISES`.

    Source: Rasmussen and Williams, 2006, Gaussian Processes for Machine Learning, eqs. 2.25 and 2.30, of sums
    of the process; a process for what a model of a system leaves open: Kennedy and O'Hagan, 2001, Bayesian
    calibration of computer models, https://doi.org/10.1111/1467-9868.00294. Deviation: the parameters of the
    model that is corrected are fitted beforehand and stay.

    Args:
        models: the operations of each.
    """

    def __init__(self, models: Iterable[Sequence[Operation]]) -> None:
        counts = [Counter(one for one in model if one.is_timed) for model in models]
        self._operations = tuple(dict.fromkeys(operation for count in counts for operation in count))
        self._counts = np.array([[count[one] for one in self._operations] for count in counts], dtype=float)
        self._alike = np.zeros((len(self._operations), len(self._operations)))
        families: dict[Any, list[int]] = {}
        for number, operation in enumerate(self._operations):
            families.setdefault(_family(operation), []).append(number)
        for members in families.values():
            places = np.stack([place_of(self._operations[number]) for number in members])
            self._alike[np.ix_(members, members)] = alike(apart(places, places), DOUBLINGS)

    def fit(self, ms_of: Callable[[Operation], float], measured: Vector, left: Vector) -> Deviations:
        """The deviations that the models tell of.

        Args:
            ms_of: predicted milliseconds of one operation, > 0.
            measured: ``[models]`` milliseconds of each.
            left: ``[models]`` what of them is not predicted.
        """
        times = self._counts * np.array([ms_of(operation) for operation in self._operations])
        shared = times @ self._alike @ times.T
        likeliest, best = -np.inf, np.zeros(len(left))
        for spread in SPREADS:
            for noise in NOISES:
                factor = cho_factor(spread**2 * shared + np.diag((noise * measured) ** 2), lower=True)
                solved = cho_solve(factor, left)
                likely = -0.5 * float(left @ solved) - float(np.log(np.diag(factor[0])).sum())
                if likely > likeliest:
                    likeliest, best = likely, spread**2 * solved
        return Deviations(dict(zip(self._operations, (times.T @ best).tolist(), strict=True)))


def _family(operation: Operation) -> tuple[Any, ...]:
    """What operations have in common whose errors may be alike: everything but sizes."""
    settings = dict(operation.settings)
    grouped = settings.pop("groups", 1) not in (1, None)
    ranks = tuple(map(len, operation.inputs))
    return operation.kind, grouped, ranks, tuple(sorted(map(str, settings.items())))
