"""What a call takes, from the times of its operations: calibrated on whole models, with its error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import lsq_linear

from prunekit.errors import MeasurementError
from prunekit.measure.operation import TIMED, Operation
from prunekit.targeting.operator_times import OperatorTimes

Vector = npt.NDArray[np.float64]

PRIOR_WEIGHT = 0.02
"""How much the prior counts against the measurements: a scale away from 1 by so much costs as an error of
this times as much."""

COUNT = "operators"
REST = "rest"


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
    """``ms = rest + sum of scale[kind] * timed ms + sum of rate[family] * elements + n * per operator``.

    Operations of kinds that are timed count with their own times, all others with the numbers they move.
    Runtimes fuse operators, keep weights in caches and change layouts, so the scales and rates are fitted to
    whole models.

    Attributes:
        times: of single operations.
        scales: by kind of timed operations, >= 0.
        rates: by family of others, milliseconds for each element, >= 0.
        per_operator: milliseconds for each operator, >= 0.
        rest: milliseconds that nothing changes, >= 0.
        errors: relative errors on the whole models, each predicted by a fit without it; in their order.
        models: what it was fitted to.
    """

    times: OperatorTimes
    scales: dict[str, float]
    rates: dict[str, float]
    per_operator: float
    rest: float
    errors: tuple[float, ...]
    models: tuple[WholeModel, ...]

    def ms_of(self, operation: Operation) -> float:
        """Milliseconds of one operation in the model."""
        if operation.is_timed:
            return self.scales.get(operation.kind, 1.0) * self.times.ms[operation] + self.per_operator
        return self.rates.get(operation.kind, 0.0) * operation.elements + self.per_operator

    def ms(self, operations: Sequence[Operation]) -> float:
        """Milliseconds of a whole model."""
        return self.rest + sum(map(self.ms_of, operations))

    @property
    def median_error(self) -> float:
        """The median of the absolute relative errors."""
        return float(np.median(np.abs(self.errors))) if self.errors else float("nan")


def fit_latency_model(times: OperatorTimes, models: Sequence[WholeModel]) -> LatencyModel:
    """Fit scales and rates to whole models: least squares of the relative errors, nothing below 0.

    A weak prior draws the scales to 1, where a kind hardly varies between the models. The error of each model
    is that of a fit to the others.

    Args:
        times: of all timed operations in the models.
        models: at least one.

    Raises:
        MeasurementError: no models.
    """
    if not models:
        raise MeasurementError("There is no whole model to fit to", expected="at least the dense one")
    features = _Features(times, models)
    solution = features.solve(range(len(models)))
    errors = []
    if len(models) > 2:
        for place in range(len(models)):
            others = [other for other in range(len(models)) if other != place]
            predicted = float(features.matrix[place] @ features.solve(others))
            errors.append(predicted / models[place].ms - 1)
    values = dict(zip(features.names, (solution / features.unit).tolist(), strict=True))
    return LatencyModel(
        times=times,
        scales={name: values[name] for name in features.names if name in TIMED},
        rates={name: values[name] for name in features.names if name not in (*TIMED, COUNT, REST)},
        per_operator=values[COUNT],
        rest=values[REST],
        errors=tuple(errors),
        models=tuple(models),
    )


class _Features:
    """What the latency of each model is a sum of."""

    def __init__(self, times: OperatorTimes, models: Sequence[WholeModel]) -> None:
        kinds = dict.fromkeys(operation.kind for model in models for operation in model.operations)
        self.names = [*sorted(kinds), COUNT, REST]
        self.matrix = np.array([[_amount(name, model, times) for name in self.names] for model in models])
        self.measured: Vector = np.array([model.ms for model in models])
        largest = self.matrix.max(axis=0)
        timed = np.array([name in TIMED for name in self.names])
        self.unit: Vector = np.where(timed, 1.0, np.where(largest > 0, largest, 1.0))
        self.matrix = self.matrix / self.unit
        self._prior = np.where(timed, 1.0, 0.0)
        # In the units of the relative errors: a timed kind by its part of the whole, the others weakly.
        part = largest / self.unit / self.measured.max()
        self._weight = np.where(timed, np.maximum(part, 0.05), 0.1 / self.measured.max()) * PRIOR_WEIGHT

    def solve(self, rows: Sequence[int] | range) -> Vector:
        """The scales and rates that fit these models best, in this class's units."""
        chosen = list(rows)
        scaled = self.matrix[chosen] / self.measured[chosen][:, None]
        matrix = np.concatenate([scaled, np.diag(self._weight)])
        wanted = np.concatenate([np.ones(len(chosen)), self._weight * self._prior])
        return lsq_linear(matrix, wanted, bounds=(0, np.inf), method="bvls").x


def _amount(name: str, model: WholeModel, times: OperatorTimes) -> float:
    if name == REST:
        return 1.0
    if name == COUNT:
        return float(len(model.operations))
    of_kind = [operation for operation in model.operations if operation.kind == name]
    if name in TIMED:
        return sum(times.ms[operation] for operation in of_kind)
    return float(sum(operation.elements for operation in of_kind))
