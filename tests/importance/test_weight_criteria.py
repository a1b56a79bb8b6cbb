"""Scores of single weights against NumPy in float64, written from the papers' equations."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.errors import CalibrationError, SelectionError, ShapeError
from prunekit.importance import find_weights, input_norms, lamp, score_weights


def as_float64(tensor):
    return tensor.detach().double().numpy()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6))


def batches(sizes=(5, 3)):
    data = torch.randn(sum(sizes), 4, 4, 4, generator=torch.Generator().manual_seed(1))
    return [SimpleNamespace(args=(part,), kwargs={}) for part in data.split(list(sizes))]


@pytest.mark.parametrize("ties", [False, True])
def test_lamp_is_equation_1(ties):
    """Oracle: Lee et al., 2021, eq. 1, ascending, suffix sums; of equal weights the lower index is later."""
    weight = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    weight = weight.round() if ties else weight
    squares = as_float64(weight).ravel() ** 2
    order = sorted(range(63), key=lambda index: (squares[index], -index))
    wanted = np.zeros(63)
    for place, index in enumerate(order):
        if squares[index]:
            wanted[index] = squares[index] / sum(squares[other] for other in order[place:])
    found = lamp(weight)
    np.testing.assert_allclose(found.numpy().ravel(), wanted, rtol=1e-6)
    assert found.max() == 1


def test_wanda_is_equation_1_on_a_linear_layer():
    """Oracle: |W| times the columns' norms of the inputs, in NumPy."""
    model = network()
    weights = find_weights(model, only="3.weight")
    norms = input_norms(model, weights, batches())
    with torch.no_grad():
        read = as_float64(model[:3](torch.cat([batch.args[0] for batch in batches()])))
    scores = score_weights(model, weights, "wanda", norms=norms)["3.weight"]
    wanted = np.abs(as_float64(model[3].weight)) * np.linalg.norm(read, axis=0)
    np.testing.assert_allclose(as_float64(scores), wanted, rtol=1e-6)


def test_wanda_of_a_grouped_convolution_takes_the_norms_of_each_group():
    """Oracle: loops over outputs, inputs and positions in NumPy."""
    model = network()
    weights = find_weights(model, only="0.weight")
    norms = input_norms(model, weights, batches())
    read = as_float64(torch.cat([batch.args[0] for batch in batches()]))
    of_channel = np.sqrt((read**2).sum(axis=(0, 2, 3)))
    np.testing.assert_allclose(norms["0.weight"].numpy(), of_channel, rtol=1e-12)
    found = as_float64(score_weights(model, weights, "wanda", norms=norms)["0.weight"])
    weight = as_float64(model[0].weight)
    wanted = np.empty_like(weight)
    for output in range(8):
        for channel in range(2):
            wanted[output, channel] = np.abs(weight[output, channel]) * of_channel[output // 4 * 2 + channel]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_wanda_takes_a_norm_for_each_position_too():
    """Oracle: torch's unfold of the inputs, in float64."""
    torch.manual_seed(0)
    module = nn.Conv2d(3, 4, 2)
    read = torch.randn(5, 3, 4, 4)
    columns = nn.functional.unfold(read, 2).double().square().sum((0, 2)).sqrt().reshape(3, 2, 2)
    norms = {"weight": columns.permute(1, 2, 0).flatten()}
    found = score_weights(module, find_weights(module), "wanda", norms=norms)["weight"]
    np.testing.assert_allclose(
        as_float64(found), np.abs(as_float64(module.weight)) * columns.numpy(), rtol=1e-6
    )


@pytest.mark.parametrize("criterion", ["taylor", "snip"])
def test_first_order_is_the_product_of_weight_and_gradient(criterion):
    """Oracle: |w g| in NumPy."""
    model = network()
    weights = find_weights(model)
    gradients = {weight.name: torch.randn(weight.shape) for weight in weights}
    found = score_weights(model, weights, criterion, gradients=gradients)
    for weight in weights:
        product = as_float64(model.get_parameter(weight.name)) * as_float64(gradients[weight.name])
        np.testing.assert_allclose(as_float64(found[weight.name]), np.abs(product), rtol=1e-6)


@pytest.mark.parametrize("sizes", [(8,), (1, 7), (2, 2, 2, 2)])
def test_norms_do_not_depend_on_how_the_data_is_cut_into_batches(sizes):
    """Sums are in float64: 1e-12 is their stated precision, beside what the model itself computes."""
    model = network().double()
    cut = [SimpleNamespace(args=(batch.args[0].double(),), kwargs={}) for batch in batches(sizes)]
    whole = [SimpleNamespace(args=(batch.args[0].double(),), kwargs={}) for batch in batches()]
    weights = find_weights(model)
    found, wanted = input_norms(model, weights, cut), input_norms(model, weights, whole)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-12, atol=0)


def test_gathering_norms_leaves_the_model_as_found():
    model = network().train()
    hooks = {name: dict(module._forward_pre_hooks) for name, module in model.named_modules()}
    state = torch.get_rng_state()
    input_norms(model, find_weights(model), batches())
    assert {name: dict(module._forward_pre_hooks) for name, module in model.named_modules()} == hooks
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_random_scores_follow_the_seed_and_the_name_alone():
    model = network()
    weights = find_weights(model)
    first = score_weights(model, weights, "random", seed=3)
    again = score_weights(model, find_weights(model, only="3.weight"), "random", seed=3)
    other = score_weights(model, weights, "random", seed=4)
    assert torch.equal(first["3.weight"], again["3.weight"])
    assert not torch.equal(first["3.weight"], other["3.weight"])
    torch.set_default_dtype(torch.float64)
    try:
        doubled = score_weights(model, weights, "random", seed=3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(first["3.weight"], doubled["3.weight"])


def test_what_is_missing_or_not_finite_is_named():
    model = network()
    weights = find_weights(model)
    with pytest.raises(SelectionError, match="no criterion 'best'"):
        score_weights(model, weights, "best")
    with pytest.raises(CalibrationError, match=r"norms of '0\.weight'"):
        score_weights(model, weights, "wanda")
    with pytest.raises(ShapeError, match="3 input norms"):
        score_weights(model, weights, "wanda", norms={"0.weight": torch.ones(3), "3.weight": torch.ones(32)})
    with pytest.raises(ShapeError, match=r"gradient has the shape \[2\]"):
        score_weights(model, weights, "taylor", gradients={"0.weight": torch.ones(2)})
    with pytest.raises(CalibrationError, match="no calibration batches"):
        input_norms(model, weights, [])
    with pytest.raises(CalibrationError, match="calibration batch 1: It is a Tensor"):
        input_norms(model, weights, [*batches((8,)), torch.ones(1, 4, 4, 4)])
    with pytest.raises(CalibrationError, match="calibration batch 1: It has no examples"):
        input_norms(model, weights, batches((8, 0)))
    broken = [SimpleNamespace(args=(torch.full((1, 4, 4, 4), torch.nan),), kwargs={})]
    with pytest.raises(CalibrationError, match=r"0\.weight'.*NaN or infinity"):
        input_norms(model, weights, broken)
    with torch.no_grad():
        model[3].weight[0, 0] = torch.inf
    with pytest.raises(CalibrationError, match=r"3\.weight: The parameter holds NaN or infinity"):
        score_weights(model, weights)


def test_a_module_that_is_never_called_or_says_nothing_is_named():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
            self.attention = nn.MultiheadAttention(4, 1)

        def forward(self, x):
            return self.used(x)

    model = Unused()
    data = [SimpleNamespace(args=(torch.rand(2, 4),), kwargs={})]
    with pytest.raises(CalibrationError, match=r"unused\.weight.*never called"):
        input_norms(model, find_weights(model, only="unused.weight"), data)
    with pytest.raises(SelectionError, match=r"attention\.in_proj_weight"):
        input_norms(model, find_weights(model, only="attention.in_proj_weight"), data)
