"""Losses that users give: numbers of any kind are taken, and of all else it is said where it came up."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit.errors import CalibrationError, WorkloadError
from prunekit.surgery.sensitivity import loss_of

MODEL = nn.Linear(2, 2)
NUMBERS = {
    "a float": 0.25,
    "of the double": np.float64(0.25),
    "of NumPy": np.float32(0.25),
    "a scalar tensor": torch.tensor(0.25),
    "a tensor of one element": torch.tensor([[0.25]]),
    "with a gradient": torch.tensor(0.25, requires_grad=True) * 1,
    "an array of one element": np.array([0.25]).reshape(()),
}
NO_NUMBERS = {
    "none": (None, "gave None"),
    "NaN": (math.nan, "is nan"),
    "infinite": (torch.tensor(-math.inf), "is -inf"),
    "one for each example": (torch.zeros(4), r"Tensor of the shape \[4\]"),
    "none of several": (np.zeros((2, 0)), r"ndarray of the shape \[2, 0\]"),
    "a word": ("low", "gave 'low'"),
    "several": ((0.1, 0.2), r"gave \(0.1, 0.2\)"),
    "complex": (1j, "gave 1j"),
}


@pytest.mark.parametrize("given", NUMBERS.values(), ids=NUMBERS)
def test_one_number_of_any_kind_is_taken(given):
    assert loss_of(lambda _: given, MODEL, "here") == 0.25


@pytest.mark.parametrize(("given", "says"), NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_what_is_not_one_finite_number_is_refused(given, says):
    with pytest.raises(CalibrationError, match=says) as error:
        loss_of(lambda _: given, MODEL, "lever 'a' at level 2")
    assert error.value.where == "lever 'a' at level 2"


def test_what_a_loss_raises_is_the_cause_of_an_error_that_says_where():
    def loss(_: nn.Module) -> float:
        raise KeyError("label")

    with pytest.raises(CalibrationError, match="raised KeyError: 'label'") as error:
        loss_of(loss, MODEL, "lever 'a' at level 2")
    assert isinstance(error.value.__cause__, KeyError)
    assert error.value.where == "lever 'a' at level 2"


def test_errors_of_the_workload_stay_what_they_are():
    def loss(_: nn.Module) -> float:
        raise WorkloadError("No such split")

    with pytest.raises(WorkloadError, match="No such split"):
        loss_of(loss, MODEL, "here")


@pytest.mark.parametrize("asked", [1, 2])
def test_single_weights_name_the_parameter_and_are_put_back(asked):
    """The first loss is of the whole model, the second with a parameter masked."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    weights = pk.find_weights(model)
    scores = pk.score_weights(model, weights, "magnitude")
    seen: list[nn.Module] = []

    def loss(net: nn.Module) -> float:
        seen.append(net)
        if len(seen) == asked:
            raise ValueError("no batch left")
        return 1.0

    with pytest.raises(CalibrationError, match="raised ValueError: no batch left") as error:
        pk.measure_sensitivity(model, weights, scores, loss, sparsities=[0.5])
    assert error.value.where == ("the dense model" if asked == 1 else f"'{next(iter(weights)).name}' at 0.5")
    assert all((old == new).all() for old, new in zip(before, model.parameters(), strict=True))
