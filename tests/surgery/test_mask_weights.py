"""Masking in one call is the steps, and what a sparsity costs is measured."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import prunekit as pk
from prunekit.errors import CalibrationError, SelectionError
from prunekit.importance import WEIGHT_CRITERIA
from prunekit.plan import BySensitivity


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 4))


def loss(outputs, batch):
    return nn.functional.cross_entropy(outputs, batch.target)


def batches(sizes=(4, 4)):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 8, generator=generator), torch.randint(0, 4, (8,), generator=generator)
    parts = zip(x.split(list(sizes)), y.split(list(sizes)), strict=True)
    return [SimpleNamespace(args=(inputs,), kwargs={}, target=target) for inputs, target in parts]


@pytest.mark.parametrize("criterion", WEIGHT_CRITERIA)
def test_one_call_is_the_steps(criterion):
    """Oracle: the steps, with gradients from torch's backward."""
    model = network()
    result = pk.mask_weights(
        model, sparsity=0.5, criterion=criterion, scope="global", calibration=batches(), loss=loss, seed=3
    )
    weights = pk.find_weights(model)
    norms = pk.input_norms(model, weights, batches())
    twin = network().eval()
    (sum(loss(twin(*batch.args), batch) for batch in batches()) / 2).backward()
    gradients = {weight.name: twin.get_parameter(weight.name).grad for weight in weights}
    scores = pk.score_weights(model, weights, criterion, norms=norms, gradients=gradients, seed=3)
    plan = pk.select_weights(weights, scores, sparsity=0.5, scope="global", criterion=criterion)
    assert plan.digest == result.plan.digest
    assert torch.equal(pk.attach_masks(model, plan)[3].weight, result.model[3].weight)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("criterion", ["wanda", "taylor", "snip"])
def test_the_same_data_in_other_batches_of_one_size_gives_the_same_masks(criterion):
    """Means over equal batches are the mean over the data, but for the last bits."""
    asked = {"sparsity": 0.5, "criterion": criterion, "loss": loss}
    plans = [
        pk.mask_weights(network(), calibration=batches(sizes), **asked).plan
        for sizes in ((8,), (4, 4), (2, 2, 2, 2), (1,) * 8)
    ]
    assert len({plan.digest for plan in plans}) == 1


def test_names_narrow_the_choice_and_what_cannot_be_masked_is_said():
    """Oracle: the rule of find_weights; biases and scales of the modules named stay as they are."""
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), spectral_norm(nn.Linear(8, 8)))
    result = pk.mask_weights(model, sparsity=0.5, only="0")
    assert list(result.plan.masks) == ["0.weight"]
    assert torch.equal(result.model[0].bias, model[0].bias)
    assert list(pk.mask_weights(model, sparsity=0.5).left_out) == ["2.weight"]
    with pytest.raises(SelectionError, match="'1' matches no parameter that can be masked"):
        pk.mask_weights(model, sparsity=0.5, only=("0", "1"))


def test_what_is_missing_is_said():
    with pytest.raises(CalibrationError, match="needs a loss"):
        pk.mask_weights(network(), sparsity=0.5, criterion="taylor", calibration=batches())
    with pytest.raises(CalibrationError, match="no calibration batches"):
        pk.mask_weights(network(), sparsity=0.5, criterion="taylor", loss=loss)
    with pytest.raises(CalibrationError, match="no calibration batches"):
        pk.mask_weights(network(), sparsity=0.5, criterion="wanda")
    with pytest.raises(CalibrationError, match="no scalar"):
        pk.mask_weights(
            network(),
            sparsity=0.5,
            criterion="snip",
            calibration=batches(),
            loss=lambda o, b: torch.tensor(1.0),
        )
    with pytest.raises(SelectionError, match="no weights"):
        pk.mask_weights(nn.ReLU(), sparsity=0.5)


def test_curves_are_what_masking_one_parameter_costs_and_leave_the_model_as_found():
    """Oracle: the loss of a model masked by the usual steps, one parameter alone."""
    model = network().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = pk.find_weights(model)
    scores = pk.score_weights(model, weights)

    def cost(net):
        with torch.no_grad():
            return float(sum(loss(net(*batch.args), batch) for batch in batches()))

    curves = pk.measure_sensitivity(model, weights, scores, cost, sparsities=(0.9, 0.5))
    for weight in weights:
        assert list(curves[weight.name]) == [0.5, 0.9]
        for sparsity, increase in curves[weight.name].items():
            alone = pk.mask_weights(model, sparsity=sparsity, only=weight.name).model
            assert increase == pytest.approx(cost(alone) - cost(model), abs=1e-6)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    shared = pk.mask_weights(model, sparsity=0.6, scope=BySensitivity(curves))
    assert shared.plan.sparsity == pytest.approx(0.6, abs=1 / weights.count)
    assert shared.plan.scope == "sensitivity (exact)"
    again = pk.measure_sensitivity(shared.model, weights, scores, cost, sparsities=(1.0,))
    assert all(math.isfinite(curve[1.0]) for curve in again.values())


def test_a_model_is_put_back_when_the_loss_fails():
    model = network()
    before = model[0].weight.detach().clone()
    weights = pk.find_weights(model)
    calls = []

    def cost(net):
        calls.append(bool((net[0].weight == before).all()))
        if len(calls) == 2:
            raise RuntimeError("out of data")
        return 1.0

    with pytest.raises(RuntimeError, match="out of data"):
        pk.measure_sensitivity(model, weights, pk.score_weights(model, weights), cost)
    assert calls == [True, False]
    assert torch.equal(model[0].weight, before)
    scores = pk.score_weights(model, weights)
    with pytest.raises(CalibrationError, match="The loss is nan"):
        pk.measure_sensitivity(model, weights, scores, lambda net: math.nan)
    with pytest.raises(SelectionError, match="sparsities"):
        pk.measure_sensitivity(model, weights, scores, cost, sparsities=(0.0,))
