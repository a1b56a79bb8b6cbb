import doctest
import importlib

import numpy as np
import pytest
import torch

from prunekit.recover import LEARNING_RATES, learning_rate
from prunekit.recover.training.learning_rate import one_cycle_rate


def rates(steps, **settings):
    return [learning_rate(step, steps=steps, **settings) for step in range(steps)]


def test_the_examples_in_the_docstrings_hold():
    failed, tried = doctest.testmod(importlib.import_module("prunekit.recover.training.learning_rate"))
    assert (failed, tried) == (0, 3)


def test_the_cosine_is_that_of_torch():
    # Oracle: torch.optim.lr_scheduler.CosineAnnealingLR.
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rates(20, peak=0.3, schedule="cosine", warmup=0.0), expected, rtol=1e-9)


def test_the_one_cycle_is_that_of_torch():
    # Oracle: torch.optim.lr_scheduler.OneCycleLR, whose last step is at progress 1.
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=21, cycle_momentum=False)
    expected = [scheduler.get_last_lr()[0]]
    for _ in range(20):
        optimizer.step()
        scheduler.step()
        expected.append(scheduler.get_last_lr()[0])
    scheduler_peak = 0.3 * 21 - 1  # In torch the rise ends at this step, and the fall begins there.
    made = [0.3 * one_cycle_rate(torch_progress(step, scheduler_peak)) for step in range(21)]
    np.testing.assert_allclose(made, expected, rtol=1e-6)


def torch_progress(step, peak):
    return 0.3 * step / peak if step < peak else 0.3 + 0.7 * (step - peak) / (20 - peak)


@pytest.mark.parametrize("schedule", sorted(LEARNING_RATES.keys() - {"one_cycle"}))
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_it_rises_to_the_peak_once_and_never_after(schedule, warmup, steps):
    made = np.array(rates(steps, peak=0.4, schedule=schedule, warmup=warmup))
    top = int(made.argmax())
    assert made.max() == pytest.approx(0.4)
    assert top == int(warmup * steps)
    assert (np.diff(made[: top + 1]) > 0).all()
    assert (np.diff(made[top:]) <= 0).all()
    assert (made > 0).all()


@pytest.mark.parametrize("schedule", sorted(LEARNING_RATES))
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_rewinding_goes_through_the_rest_of_the_schedule_again(schedule, warmup):
    """Oracle: the parent's own learning rates from the early step on."""
    given = {"peak": 0.1, "schedule": schedule, "warmup": warmup}
    assert rates(30, **given, rewind_to=0.25) == pytest.approx(rates(40, **given)[10:])
