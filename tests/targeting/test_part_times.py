"""What operations take inside of models is told from what others took there.

Oracles: times that are planted; the regression written out densely.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.targeting.test_latency_model import elementwise, linear

from prunekit.measure.operation import NOTHING, Operation
from prunekit.targeting import part_times
from prunekit.targeting.latency_model import WholeModel, fit_latency_model
from prunekit.targeting.operator_times import OperatorTimes
from prunekit.targeting.part_times import fit_part_times


def planted_ms(operation: Operation) -> float:
    """In a model: not what it takes alone times any factor."""
    width = operation.inputs[0][1]
    return 2e-6 * operation.macs * (1 + 0.5 * np.sin(1.5 * np.log2(width))) + 0.003


def planted(seed: int, count: int) -> tuple[OperatorTimes, list[WholeModel]]:
    """Random models of linear operators and some that are not timed; alone they take what says little."""
    draw, times, models = np.random.default_rng(seed), OperatorTimes("planted"), []
    times.ms[NOTHING] = 0.0
    for number in range(count):
        each = [linear(16, *draw.integers(16, 1024, 2).tolist()) for _ in range(12)]
        times.ms |= {one: one.macs * 1e-6 * float(draw.lognormal(0, 0.3)) + 0.01 for one in each}
        parts = {one: (1, planted_ms(one)) for one in each}
        beside = elementwise(100_000)
        ms = sum(ms for _, ms in parts.values()) + 1e-6 * beside.elements
        models.append(WholeModel((*each, beside), ms, f"model {number}", parts))
    return times, models


def told(models: list[WholeModel]):
    return [(model.operations, model.parts) for model in models]


@pytest.mark.parametrize("seed", range(3))
def test_models_that_were_not_seen_are_told_better_with_parts(seed):
    times, models = planted(seed, 30)
    without = [WholeModel(model.operations, model.ms, model.name) for model in models]
    errors = []
    for some in (models, without):
        fitted = fit_latency_model(times, some[:10])
        errors.append(np.median([abs(fitted.ms(model.operations) / model.ms - 1) for model in models[10:]]))
    assert errors[0] < 0.04
    assert errors[0] < 0.5 * errors[1]


def test_a_model_that_was_seen_is_told_as_it_was():
    times, models = planted(0, 12)
    fitted = fit_latency_model(times, models)
    for model in models:
        assert fitted.ms(model.operations) == pytest.approx(model.ms, rel=0.05)


def test_what_is_expected_is_the_regression_written_out(monkeypatch):
    """One spread, noise and distance, so that nothing is chosen; the mean of a lognormal."""
    monkeypatch.setattr(part_times, "SPREADS", (0.3,))
    monkeypatch.setattr(part_times, "NOISES", (0.1,))
    monkeypatch.setattr(part_times, "DOUBLINGS", (1.0,))
    times, models = planted(1, 4)
    found = fit_part_times(times, told(models[:3]))
    seen = [one for model in models[:3] for one in model.parts]
    ms = np.array([planted_ms(one) for one in seen])

    def traits(operations):
        rows = [[times.ms[one], one.macs, one.moved] for one in operations]
        return np.hstack([np.log(rows), np.ones((len(rows), 1))])

    def covariance(left, right):
        places = [
            np.log2([[*one.inputs[0], *one.inputs[1], *one.output] for one in x]) for x in (left, right)
        ]
        apart = ((places[0][:, None] - places[1][None]) ** 2).sum(2)
        same = np.array([[one == other for other in right] for one in left])
        return 0.09 * ((1 - part_times.OWN) * np.exp(-apart / 2) + part_times.OWN * same)

    weights = np.diag(ms / ms.mean())
    drawn = part_times.PRIOR * np.diag([1, 1, 1, 1e-6])
    trend = np.linalg.inv(traits(seen).T @ weights @ traits(seen) + drawn) @ (
        traits(seen).T @ weights @ np.log(ms) + drawn @ [1, 0, 0, 0]
    )
    others = list(models[3].parts)
    inverse = np.linalg.inv(covariance(seen, seen) + 0.01 * np.eye(len(seen)))
    mean = traits(others) @ trend + covariance(others, seen) @ inverse @ (np.log(ms) - traits(seen) @ trend)
    variance = 0.09 - np.diag(covariance(others, seen) @ inverse @ covariance(seen, others))
    np.testing.assert_allclose([found.of(one) for one in others], np.exp(mean + variance / 2), rtol=1e-6)


def test_of_two_that_should_take_the_same_the_one_less_is_known_of_counts_more(monkeypatch):
    """Equal in all that the trend knows, and seen where the trend is right."""
    monkeypatch.setattr(part_times, "SPREADS", (0.3,))
    seen = [linear(16, size, 64) for size in (32, 64, 128, 256)]
    known, unknown = linear(16, 64, 64), linear(1, 64 * 16, 64)
    times = OperatorTimes("planted")
    times.ms = {one: 1e-6 * one.macs for one in (*seen, known, unknown)}
    found = fit_part_times(times, [(seen, {one: (1, 1e-6 * one.macs) for one in seen})])
    assert found.of(unknown) / times.ms[unknown] > 1.02 * found.of(known) / times.ms[known]


def test_other_families_are_not_told():
    times, models = planted(0, 3)
    found = fit_part_times(times, told(models))
    assert found.of(Operation("product", ((4, 64, 64), (4, 64, 64)), (4, 64, 64))) is None
    assert found.of(elementwise(10)) is None
    assert fit_part_times(times, []).of(linear(16, 64, 64)) is None


@pytest.mark.parametrize(("large", "told_of"), [(True, False), (False, True)])
def test_a_family_of_which_too_few_are_known_is_not_told(large, told_of):
    """Of five equal operations and a small one, the part of the small one or of the others is known."""
    big, small = linear(16, 512, 512), linear(16, 16, 16)
    times = OperatorTimes("planted")
    times.ms = {big: 1.0, small: 0.1}
    parts = {small: (1, 0.005)} if large else {big: (5, 4.0)}
    found = fit_part_times(times, [((*[big] * 5, small), parts)])
    assert (found.of(small) is not None) == told_of
    assert (found.of(big) is not None) == told_of
