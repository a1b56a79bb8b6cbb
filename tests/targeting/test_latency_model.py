"""The latency model finds the scales that whole models were made with, and its errors are honest.

Oracle: whole models whose milliseconds are computed from planted scales, rates and a rest.
"""

from __future__ import annotations

import numpy as np
import pytest

from prunekit.errors import MeasurementError
from prunekit.measure.operation import NOTHING, Operation
from prunekit.targeting.latency_model import WholeModel, fit_latency_model
from prunekit.targeting.operator_times import OperatorTimes

SCALES = {"convolution": 0.7, "linear": 1.3}
RATES = {"elementwise": 3e-6}
REST = 0.4


def linear(rows: int, inputs: int, outputs: int) -> Operation:
    return Operation("linear", ((rows, inputs), (outputs, inputs)), (rows, outputs))


def convolution(inputs: int, outputs: int, size: int = 8) -> Operation:
    settings = (("stride", (1, 1)), ("padding", (1, 1)), ("dilation", (1, 1)), ("groups", 1))
    shapes = ((1, inputs, size, size), (outputs, inputs, 3, 3))
    return Operation("convolution", shapes, (1, outputs, size, size), settings)


def elementwise(size: int) -> Operation:
    return Operation("elementwise", ((size,),), (size,))


def planted(seed: int, count: int, *, noise: float = 0.0):
    """Random models of a few operations, and times of these alone."""
    draw = np.random.default_rng(seed)
    times = OperatorTimes("planted")
    times.ms[NOTHING] = 0.0
    models = []
    for number in range(count):
        convolutions = [convolution(*draw.integers(8, 128, 2).tolist()) for _ in range(4)]
        linears = [linear(16, *draw.integers(16, 1024, 2).tolist()) for _ in range(int(draw.integers(1, 9)))]
        cheap = [elementwise(int(draw.integers(1000, 200_000))) for _ in range(3)]
        for one in (*convolutions, *linears):
            times.ms[one] = one.macs * 1e-6 + 0.01
        ms = REST + sum(SCALES[one.kind] * times.net_ms(one) for one in (*convolutions, *linears))
        ms += sum(RATES[one.kind] * one.elements for one in cheap)
        ms *= 1 + noise * draw.standard_normal()
        models.append(WholeModel((*convolutions, *linears, *cheap), float(ms), f"model {number}"))
    return times, models


@pytest.mark.parametrize("seed", range(4))
def test_models_that_were_not_seen_are_told(seed):
    times, models = planted(seed, 30)
    fitted = fit_latency_model(times, models[:20])
    errors = [abs(fitted.ms(model.operations) / model.ms - 1) for model in models[20:]]
    assert np.median(errors) < 0.02
    assert max(errors) < 0.06
    assert fitted.median_error < 0.02


@pytest.mark.parametrize("seed", range(4))
def test_planted_scales_are_found(seed):
    times, models = planted(seed, 60)
    fitted = fit_latency_model(times, models)
    for kind, scale in SCALES.items():
        assert fitted.scales[kind] == pytest.approx(scale, rel=0.1)
    assert fitted.rates["elementwise"] == pytest.approx(RATES["elementwise"], rel=0.3)


@pytest.mark.parametrize("count", [3, 6])
def test_errors_are_those_of_fits_without_the_model(count):
    times, models = planted(7, count, noise=0.1)
    fitted = fit_latency_model(times, models)
    assert len(fitted.errors) == count
    for place, model in enumerate(models):
        without = fit_latency_model(times, [other for other in models if other is not model])
        assert fitted.errors[place] == pytest.approx(without.ms(model.operations) / model.ms - 1, abs=1e-6)


def test_noise_shows_in_the_errors():
    quiet = fit_latency_model(*planted(1, 20)).median_error
    noisy = fit_latency_model(*planted(1, 20, noise=0.2)).median_error
    assert quiet < 0.02 < 0.05 < noisy


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_models_have_no_error(count):
    fitted = fit_latency_model(*planted(0, count))
    assert fitted.errors == ()
    assert np.isnan(fitted.median_error)


def test_one_model_is_told_as_it_was_measured():
    """Where the data do not decide, the prior does: scales near 1, and the whole is met nearly."""
    times, (model,) = planted(3, 1)
    fitted = fit_latency_model(times, [model])
    assert fitted.ms(model.operations) == pytest.approx(model.ms, rel=0.1)
    assert all(0.3 < scale < 2 for scale in fitted.scales.values())


def test_no_figure_is_negative():
    """Whole models that take less than their operations alone: scales and rest stay from 0 up."""
    times, models = planted(5, 10)
    faster = [WholeModel(model.operations, model.ms * 0.01, model.name) for model in models]
    fitted = fit_latency_model(times, faster)
    assert all(scale >= 0 for scale in fitted.scales.values())
    assert fitted.rest >= 0
    for model in models:
        assert all(fitted.ms_of(one) >= 0 for one in model.operations)


def test_nothing_to_fit_to():
    with pytest.raises(MeasurementError, match="no whole model"):
        fit_latency_model(OperatorTimes("planted"), [])
