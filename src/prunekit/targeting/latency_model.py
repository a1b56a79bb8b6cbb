"""What a call takes, from the times of its operations: fitted to whole models, with its error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import scipy

from prunekit.errors import MeasurementError
from prunekit.measure.operation import TIMED, Operation
from prunekit.targeting.deviations import Deviations, Residuals
from prunekit.targeting.in_context import Parts
from prunekit.targeting.operator_times import OperatorTimes
from prunekit.targeting.part_times import PartTimes, fit_part_times

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
        parts: what some of its operations took in it, where the runtime tells.
    """

    operations: tuple[Operation, ...]
    ms: float
    name: str
    parts: Parts = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """``ms = rest + sum over operations of (scale[kind] * timed ms + rate[kind] * numbers moved) * (1 + d)``.

    That holds of operations which were not timed inside of models. Those that were, and others like them,
    take what :class:`prunekit.targeting.part_times.PartTimes` expects of them there.

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
        parts: of operations inside of models.
        scales: by kind, >= 0; 0 for kinds that are not timed.
        rates: by kind, milliseconds for each number moved.
        rest: milliseconds that no width changes, >= 0.
        deviations: of timed operations.
        errors: relative errors on the whole models, each predicted by a fit without it; in their order.
        models: what it was fitted to.
    """

    times: OperatorTimes
    parts: PartTimes
    scales: dict[str, float]
    rates: dict[str, float]
    rest: float
    deviations: Deviations
    errors: tuple[float, ...]
    models: tuple[WholeModel, ...]

    def ms_of(self, operation: Operation) -> float:
        """Milliseconds of one operation in the model."""
        expected = self.parts.of(operation)
        return self._apart(operation) if expected is None else expected

    def _apart(self, operation: Operation) -> float:
        """The same from its own time and size."""
        kind = operation.kind
        moving = self.rates.get(kind, 0.0) * operation.moved
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

    Where the runtime told what operations took inside of the models, that is fitted first, and the others
    to what is left. A weak prior draws the scales to 1 and the rates to 0, which decides where the models do
    not. The error of each model is that of a fit to the others.

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
    found, errors = _Fit(times, models).fitted(), []
    for place, model in enumerate(models):
        if len(models) > 2:
            without = _Fit(times, [*models[:place], *models[place + 1 :]], found.parts).fitted()
            errors.append(without.ms(model.operations) / model.ms - 1)
    return replace(found, errors=tuple(errors), models=tuple(models))


class _Fit:
    """The least squares problem; every row is one model, in units of its measured time."""

    def __init__(
        self, times: OperatorTimes, models: Sequence[WholeModel], like: PartTimes | None = None
    ) -> None:
        self._known, self._models = times, models
        self._parts = fit_part_times(times, ((model.operations, model.parts) for model in models), like)
        self._beside = [
            [operation for operation in model.operations if self._parts.of(operation) is None]
            for model in models
        ]
        self._left = np.array([model.ms - self._inside(model) for model in models])
        self._ms = np.array([model.ms for model in models])
        self._kinds = sorted({operation.kind for beside in self._beside for operation in beside})
        self._timed = [kind for kind in self._kinds if kind in TIMED]
        rows = [[*self._times(beside), *self._moves(beside), 1.0] for beside in self._beside]
        self._matrix = np.array(rows) / self._ms[:, None]
        # A timed kind may have any rate.
        self._least = np.array(
            [0.0] * len(self._timed) + [-np.inf if kind in TIMED else 0.0 for kind in self._kinds] + [0.0]
        )

    def fitted(self) -> LatencyModel:
        """The model that these whole models tell of, without its errors."""
        scales, rates, rest = self._solved()
        plain = LatencyModel(self._known, self._parts, scales, rates, rest, Deviations({}), (), ())
        left = self._left - np.array([plain.ms(beside) for beside in self._beside])
        return replace(plain, deviations=Residuals(self._beside).fit(plain.ms_of, self._ms, left))

    def _inside(self, model: WholeModel) -> float:
        """Milliseconds of operations that were timed in this model, or are like some that were in others."""
        found = 0.0
        for operation, count in Counter(model.operations).items():
            expected = self._parts.of(operation)
            if expected is not None:
                found += model.parts.get(operation, (count, count * expected))[1]
        return found

    def _solved(self) -> tuple[dict[str, float], dict[str, float], float]:
        """Scales and rates by kind, and the rest, that fit these models best."""
        matrix = self._matrix
        # Columns of equal weight: 1 = the whole time of the model in which it matters most.
        unit = np.maximum(np.abs(matrix).max(axis=0), 1e-12)
        count = len(self._timed)
        prior = np.concatenate([unit[:count], np.zeros(len(unit) - count)])
        # A rate, in this unit, is the part of a model's time that it explains.
        share = np.concatenate([unit[:count], np.ones(len(unit) - count)])
        weight = PRIOR / np.maximum(share, 0.1)
        solution = scipy.optimize.lsq_linear(
            np.concatenate([matrix / unit, np.diag(weight)]),
            np.concatenate([self._left / self._ms, weight * prior]),
            bounds=(self._least, np.inf),
            method="bvls",
        ).x
        values = (solution / unit).tolist()
        scales = dict(zip(self._timed, values[:count], strict=True))
        rates = dict(zip(self._kinds, values[count:-1], strict=True))
        return scales, rates, values[-1]

    def _times(self, operations: Sequence[Operation]) -> list[float]:
        return [
            sum(self._known.net_ms(operation) for operation in operations if operation.kind == kind)
            for kind in self._timed
        ]

    def _moves(self, operations: Sequence[Operation]) -> list[float]:
        return [
            float(sum(operation.moved for operation in operations if operation.kind == kind))
            for kind in self._kinds
        ]
