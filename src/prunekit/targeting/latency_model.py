"""What a call takes, from the times of its operations: fitted to whole models, with its error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt
from scipy.optimize import lsq_linear

from prunekit.errors import MeasurementError
from prunekit.measure.operation import TIMED, Operation
from prunekit.targeting.deviations import Deviations, Residuals
from prunekit.targeting.operator_times import OperatorTimes

Vector = npt.NDArray[np.float64]

PRIOR = 0.2
"""How much the prior counts: a time that is doubled costs as much as an error of this on one model."""

LEAST = 0.05
"""No operation counts with less than this share of its own time."""


@dataclass(frozen=True, eq=False)
class WholeModel:
    """A model that was timed whole.

    Attributes:
        operations: what it computes.
        ms: of one call.
        name: what it is, for the record.
    """

    operations: tuple[Operation, ...]
    ms: float
    name: str


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """``ms = rest + sum over operations of (scale[kind] * timed ms + rate[kind] * numbers moved) * (1 + d)``.

    Operations of the kinds in :data:`TIMED` have times of their own; what they take in the model differs,
    because runtimes fuse operators, keep values in caches and change layouts where an operation alone has to
    change them back. So the rate of such a kind may be negative. All other operators count with the
    numbers that they move alone. What is still left is put down to single operations: ``d``, which similar
    operations share, is 0 for those that are not timed (:class:`prunekit.targeting.deviations.Deviations`).

    Source: the sum of times of operators from a table: Wu et al., 2019, FBNet,
    https://arxiv.org/abs/1812.03443. Deviation: scales, rates and a rest, fitted to whole models. They stand
    for fusion, which Zhang et al., 2021, nn-Meter, https://doi.org/10.1145/3458864.3467882, find out by
    tests and predict kernel by kernel: more exact, and to be done anew for every runtime.

    Attributes:
        times: of single operations.
        scales: by kind, >= 0; 0 for kinds that are not timed.
        rates: by kind, milliseconds for each number moved.
        rest: milliseconds that no width changes, >= 0.
        deviations: of timed operations.
        errors: relative errors on the whole models, each predicted by a fit without it; in their order.
        models: what it was fitted to.
    """

    times: OperatorTimes
    scales: dict[str, float]
    rates: dict[str, float]
    rest: float
    deviations: Deviations
    errors: tuple[float, ...]
    models: tuple[WholeModel, ...]

    def ms_of(self, operation: Operation) -> float:
        """Milliseconds of one operation in the model."""
        kind = operation.kind
        moving = self.rates.get(kind, 0.0) * _moved(operation)
        if not operation.is_timed:
            return moving
        alone = self.times.net_ms(operation)
        expected = max(self.scales.get(kind, 1.0) * alone + moving, LEAST * alone)
        return max(expected * (1 + self.deviations.of(operation)), LEAST * alone)

    def ms(self, operations: Sequence[Operation]) -> float:
        """Milliseconds of a whole model."""
        return self.rest + sum(map(self.ms_of, operations))

    @property
    def median_error(self) -> float:
        """The median of the absolute relative errors; NaN where there are too few models to tell."""
        return float(np.median(np.abs(self.errors))) if self.errors else float("nan")


def fit_latency_model(times: OperatorTimes, models: Sequence[WholeModel]) -> LatencyModel:
    """Fit scales and rates to whole models: least squares of the relative errors; and deviations to the rest.

    A weak prior draws the scales to 1 and the rates to 0, which decides where the models do not. The error of
    each model is that of a fit to the others.

    Args:
        times: of all timed operations in the models.
        models: at least one.

    Raises:
        MeasurementError: no models.

    Source: ridge regression: Hoerl and Kennard, 1970, https://doi.org/10.1080/00401706.1970.10488634;
    deviations: drawn to 1 and 0 in units of each model's time, within bounds. Solver: Stark and Parker, 1995,
    Bounded-Variable Least Squares, as :func:`scipy.optimize.lsq_linear` has it. Errors: leave-one-out, Stone,
    1974, https://doi.org/10.1111/j.2517-6161.1974.tb00994.x.
    """
    if not models:
        raise MeasurementError("There is no whole model to fit to", expected="at least the dense one")
    fit, every = _Fit(times, models), range(len(models))
    errors = []
    for place, model in enumerate(models):
        if len(models) > 2:
            without = fit.fitted([other for other in every if other != place])
            errors.append(without.ms(model.operations) / model.ms - 1)
    return replace(fit.fitted(every), errors=tuple(errors), models=tuple(models))


class _Fit:
    """The least squares problem; every row is one model, in units of its measured time."""

    def __init__(self, times: OperatorTimes, models: Sequence[WholeModel]) -> None:
        self._known, self._models = times, models
        self._residuals = Residuals(model.operations for model in models)
        self._kinds = sorted({operation.kind for model in models for operation in model.operations})
        self._timed = [kind for kind in self._kinds if kind in TIMED]
        rows = [[*self._times(model, times), *self._moves(model), 1.0] for model in models]
        self._matrix = np.array(rows) / np.array([[model.ms] for model in models])
        # A timed kind may have any rate.
        self._least = np.array(
            [0.0] * len(self._timed) + [-np.inf if kind in TIMED else 0.0 for kind in self._kinds] + [0.0]
        )

    def fitted(self, rows: Sequence[int]) -> LatencyModel:
        """The model that these whole models tell of, without its errors; no other whole model counts."""
        scales, rates, rest = self._solved(rows)
        plain = LatencyModel(self._known, scales, rates, rest, Deviations({}), (), ())
        some = [self._models[row] for row in rows]
        measured = np.array([model.ms for model in some])
        predicted = np.array([plain.ms(model.operations) for model in some])
        return replace(plain, deviations=self._residuals.fit(rows, plain.ms_of, measured, predicted))

    def _solved(self, rows: Sequence[int]) -> tuple[dict[str, float], dict[str, float], float]:
        """Scales and rates by kind, and the rest, that fit these models best."""
        matrix = self._matrix[list(rows)]
        # Columns of equal weight: 1 = the whole time of the model in which it matters most.
        unit = np.maximum(np.abs(matrix).max(axis=0), 1e-12)
        count = len(self._timed)
        prior = np.concatenate([unit[:count], np.zeros(len(unit) - count)])
        # A rate, in this unit, is the part of a model's time that it explains.
        share = np.concatenate([unit[:count], np.ones(len(unit) - count)])
        weight = PRIOR / np.maximum(share, 0.1)
        solution = lsq_linear(
            np.concatenate([matrix / unit, np.diag(weight)]),
            np.concatenate([np.ones(len(matrix)), weight * prior]),
            bounds=(self._least, np.inf),
            method="bvls",
        ).x
        values = (solution / unit).tolist()
        scales = dict(zip(self._timed, values[:count], strict=True))
        rates = dict(zip(self._kinds, values[count:-1], strict=True))
        return scales, rates, values[-1]

    def _times(self, model: WholeModel, times: OperatorTimes) -> list[float]:
        return [
            sum(times.net_ms(operation) for operation in model.operations if operation.kind == kind)
            for kind in self._timed
        ]

    def _moves(self, model: WholeModel) -> list[float]:
        return [
            float(sum(_moved(operation) for operation in model.operations if operation.kind == kind))
            for kind in self._kinds
        ]


def _moved(operation: Operation) -> int:
    """Numbers that are read and written, but for the weights of a timed operation."""
    if operation.kind in ("convolution", "linear"):
        return prod(operation.inputs[0]) + prod(operation.output)
    return operation.elements
