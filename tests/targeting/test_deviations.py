"""What whole models took tells how far single operations are off.

Oracles: models made of operations whose errors are planted; the regression written out densely.
"""

from __future__ import annotations

import numpy as np
import pytest

from prunekit.measure.operation import NOTHING, Operation
from prunekit.targeting import deviations
from prunekit.targeting.deviations import Deviations, Residuals
from prunekit.targeting.latency_model import WholeModel, fit_latency_model
from prunekit.targeting.operator_times import OperatorTimes


def linear(inputs: int, outputs: int) -> Operation:
    return Operation("linear", ((16, inputs), (outputs, inputs)), (16, outputs))


def planted_error(operation: Operation) -> float:
    """Goes up and down with the logarithm of the width, as no scale and no rate do."""
    return 0.4 * np.sin(1.5 * np.log2(operation.inputs[0][1]))


def models(seed: int, count: int, error=planted_error) -> tuple[OperatorTimes, list[WholeModel]]:
    draw, times, found = np.random.default_rng(seed), OperatorTimes("planted"), []
    times.ms[NOTHING] = 0.0
    for number in range(count):
        each = [linear(*draw.integers(16, 1024, 2).tolist()) for _ in range(12)]
        times.ms |= {one: one.macs * 1e-6 + 0.01 for one in each}
        found.append(
            WholeModel(tuple(each), sum(times.ms[o] * (1 + error(o)) for o in each), f"model {number}")
        )
    return times, found


def errors(times: OperatorTimes, seen: list[WholeModel], others: list[WholeModel]) -> float:
    fitted = fit_latency_model(times, seen)
    return float(np.median([abs(fitted.ms(model.operations) / model.ms - 1) for model in others]))


@pytest.mark.parametrize("seed", range(4))
def test_models_that_were_not_seen_are_told_better_with_them(seed, monkeypatch):
    times, every = models(seed, 40)
    with_them = errors(times, every[:20], every[20:])
    monkeypatch.setattr(Residuals, "fit", lambda *_: Deviations({}))
    assert with_them < 0.7 * errors(times, every[:20], every[20:])


@pytest.mark.parametrize("seed", range(4))
def test_where_nothing_is_off_little_is_found(seed):
    times, every = models(seed, 12, error=lambda _: 0.1)
    fitted = fit_latency_model(times, every)
    assert max(abs(fitted.deviations.of(o)) for model in every for o in model.operations) < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_they_are_the_regression_written_out(seed, monkeypatch):
    """One spread and one noise, so that nothing is chosen; ``K (T K T' + N)^-1`` with every matrix whole."""
    monkeypatch.setattr(deviations, "SPREADS", (0.2,))
    monkeypatch.setattr(deviations, "NOISES", (0.02,))
    times, every = models(seed, 6)
    measured = np.array([model.ms for model in every])
    predicted = np.array([sum(map(times.net_ms, model.operations)) for model in every])
    fit = Residuals(model.operations for model in every).fit
    found = fit(times.net_ms, measured, measured - predicted)
    each = list(dict.fromkeys(o for model in every for o in model.operations))
    sizes = np.log2([[*o.inputs[0], *o.inputs[1], *o.output] for o in each])
    apart = ((sizes[:, None] - sizes[None]) ** 2).sum(2)
    prior = 0.04 * np.exp(-apart / (2 * deviations.DOUBLINGS**2))
    took = np.array([[model.operations.count(o) * times.net_ms(o) for o in each] for model in every])
    noise = np.diag((0.02 * measured) ** 2)
    expected = prior @ took.T @ np.linalg.solve(took @ prior @ took.T + noise, measured - predicted)
    np.testing.assert_allclose([found.of(o) for o in each], expected, rtol=1e-6, atol=1e-9)


def test_families_have_nothing_to_do_with_each_other():
    times, every = models(0, 6)
    known = fit_latency_model(times, every).deviations
    other = Operation("product", ((4, 64, 64), (4, 64, 64)), (4, 64, 64))
    assert known.of(other) == 0.0
    assert known.of(linear(100, 100)) != 0.0
    assert Deviations({}).of(linear(100, 100)) == 0.0
