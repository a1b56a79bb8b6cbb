"""Masking in one call is the steps, and what a sparsity costs is measured."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import prunekit as pk
from prunekit.errors import CalibrationError, SelectionError, ShapeError
from prunekit.importance import WEIGHT_CRITERIA, mean_gradients
from prunekit.plan import BySensitivity
from prunekit.workload import Batch


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
def test_the_same_data_in_other_batches_gives_the_same_masks(criterion):
    """Means weighted by examples are the mean over the data, but for the last bits."""
    asked = {"sparsity": 0.5, "criterion": criterion, "loss": loss}
    plans = [
        pk.mask_weights(network(), calibration=batches(sizes), **asked).plan
        for sizes in ((8,), (4, 4), (1, 7), (3, 4, 1), (1,) * 8)
    ]
    assert len({plan.digest for plan in plans}) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_gradients_of_many_batches_are_summed_without_losing_digits(dtype):
    """Oracle: the same per-example gradients, torch's backward, averaged in float64."""
    model = network().to(dtype).eval()
    data = [
        Batch(args=(part.args[0].to(dtype),), target=part.target)
        for part in batches((1,) * 8)
        for _ in range(64)
    ]
    weights = pk.find_weights(model)
    found = mean_gradients(model, weights, data, loss)
    for weight in weights:
        parameter = model.get_parameter(weight.name)
        parts = []
        for batch in data[::64]:
            (part,) = torch.autograd.grad(loss(model(*batch.args), batch), parameter)
            parts.append(part.double())
        wanted = torch.stack(parts).mean(0)
        assert found[weight.name].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(found[weight.name].double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_batch_counts_by_its_ids_or_else_by_its_first_input():
    """Oracle: torch's backward of the mean over all examples."""
    model = network().eval()
    x, y = torch.ones(4, 8), torch.tensor([0, 1, 2, 3])
    data = [Batch(args=(x[:3],), target=y[:3], ids=("a", "b", "c")), Batch(args=(x[3:],), target=y[3:])]
    found = mean_gradients(model, pk.find_weights(model), data, loss)
    (wanted,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), model[0].weight)
    torch.testing.assert_close(found["0.weight"], wanted)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"pattern": "4:8"}, ShapeError),
        ({"pattern": "2:4", "scope": "global"}, SelectionError),
        ({}, SelectionError),
        ({"sparsity": 1.5}, SelectionError),
        ({"sparsity": 0.5, "scope": "best"}, SelectionError),
        ({"sparsity": 0.5, "pattern": "best"}, SelectionError),
        ({"sparsity": 0.5, "pattern": "5x5"}, ShapeError),
        ({"sparsity": 0.5, "seed": -1}, SelectionError),
    ],
)
def test_what_cannot_be_selected_is_refused_before_the_model_runs(asked, error):
    def unused():
        raise AssertionError("the data were read")
        yield

    with pytest.raises(error):
        pk.mask_weights(network(), criterion="wanda", calibration=unused(), **asked)


@pytest.mark.parametrize(
    ("criterion", "pattern", "scope"),
    [
        ("magnitude", "element", "tensor"),
        ("wanda", "element", "row"),
        ("wanda", "4x4", "tensor"),
        ("wanda", "2:4", "n:m"),
        ("lamp", "element", "global"),
        ("taylor", "element", "tensor"),
    ],
)
def test_without_a_scope_weights_compete_as_the_source_of_the_criterion_says(criterion, pattern, scope):
    asked = {"criterion": criterion, "pattern": pattern, "calibration": batches(), "loss": loss}
    share = {} if pattern == "2:4" else {"sparsity": np.float32(0.5)}
    assert pk.mask_weights(network(), **asked, **share).plan.scope == scope


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
    with pytest.raises(CalibrationError, match="does not depend on any parameter"):
        pk.mask_weights(
            network(),
            sparsity=0.5,
            criterion="snip",
            calibration=batches(),
            loss=lambda o, b: torch.tensor(1.0),
        )
    asked = {"sparsity": 0.5, "criterion": "taylor"}
    for value, says in ((1.0, "one scalar tensor"), (torch.tensor(torch.nan), "It is nan")):
        with pytest.raises(CalibrationError, match=says):
            pk.mask_weights(network(), **asked, calibration=batches(), loss=lambda o, b, v=value: v)
    with pytest.raises(CalibrationError, match="calibration batch 0: It is a Tensor"):
        pk.mask_weights(network(), **asked, calibration=[torch.ones(2, 8)], loss=loss)
    with pytest.raises(CalibrationError, match="calibration batch 1: It has no examples"):
        pk.mask_weights(network(), **asked, calibration=batches((8, 0)), loss=loss)
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

    with pytest.raises(CalibrationError, match="raised RuntimeError: out of data"):
        pk.measure_sensitivity(model, weights, pk.score_weights(model, weights), cost)
    assert calls == [True, False]
    assert torch.equal(model[0].weight, before)
    scores = pk.score_weights(model, weights)
    with pytest.raises(CalibrationError, match="The loss is nan"):
        pk.measure_sensitivity(model, weights, scores, lambda net: math.nan)
    with pytest.raises(SelectionError, match="sparsities"):
        pk.measure_sensitivity(model, weights, scores, cost, sparsities=(0.0,))
