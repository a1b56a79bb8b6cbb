"""Which numbers an update after units went may change, and what it does with few rows or small dtypes."""

import dataclasses

import numpy as np
import pytest
import torch
from tests.reconstruction.test_units import batches, plan_of, state
from torch import nn

from prunekit.errors import CalibrationError
from prunekit.graph import find_groups, trace
from prunekit.reconstruction import reconstruct
from prunekit.surgery import remove


class Between(nn.Module):
    """Two layers with six units between them, and what reads them."""

    def __init__(self, scale=1.0, bias=2, buffer=False):
        super().__init__()
        self.first = nn.Linear(4, 6)
        weight = torch.randn(6, 2) * scale
        if buffer:
            self.register_buffer("second", weight)
        else:
            self.second = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.randn(bias))

    def forward(self, x):
        return torch.addmm(self.bias, torch.tanh(self.first(x)), self.second)


def between(**options):
    torch.manual_seed(0)
    model, x = Between(**options), torch.randn(40, 4)
    groups = find_groups(trace(model, (x[:2],)))
    plan = plan_of(groups)
    return model, remove(model, plan, groups), plan, groups, batches(((x,), {}))


def test_buffers_are_no_weights():
    model, removal, plan, groups, given = between(buffer=True)
    found = reconstruct(model, removal, plan, groups, given)
    assert not found.layers
    assert [(item.tensor, item.reason) for item in found.left_alone] == [
        ("second", "it is no parameter of the model")
    ]
    assert all(torch.equal(value, state(removal.model)[name]) for name, value in state(found.model).items())


def test_one_number_for_all_outputs_is_left_alone():
    """The update of a layer without a bias, of what the number leaves."""
    model, removal, plan, groups, given = between(bias=1)
    found = reconstruct(model, removal, plan, groups, given, damping=0.0)
    assert [layer.name for layer in found.layers] == ["second"]
    assert [(item.tensor, item.reason) for item in found.left_alone] == [
        ("bias", "it is one number for all outputs")
    ]
    (x,) = given[0].args
    with torch.no_grad():
        h, wanted = torch.tanh(removal.model.first(x)), model(x) - model.bias
        expected = np.linalg.lstsq(h.double().numpy(), wanted.double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(found.model.second.detach(), expected, atol=1e-4)
    assert torch.equal(found.model.bias, model.bias)


def normed(*, bias):
    """A convolution with or without a bias, of zeros, before a batch norm; otherwise the same numbers."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, bias=bias), nn.BatchNorm2d(6), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(54, 3)).double().eval()
    draw = torch.Generator().manual_seed(1)
    for name, tensor in sorted(model.state_dict().items()):
        if name == "2.bias":
            tensor.zero_()
        elif tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=draw, dtype=torch.float64) * 0.4
            tensor.copy_(drawn.abs() + 0.1 if name.endswith("var") else drawn)
    return model


@pytest.mark.parametrize("sequential", [True, False])
def test_a_batch_norm_takes_over_the_bias_that_a_layer_lacks(sequential):
    """Oracle: the same network with a bias of zeros there, whose update moves it."""
    x = torch.randn(30, 3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = {}
    for bias in (True, False):
        model = normed(bias=bias)
        groups = find_groups(trace(model, (x[:2],)))
        plan = plan_of(groups)
        given = batches(((x,), {}))
        removal = remove(model, plan, groups)
        found[bias] = reconstruct(model, removal, plan, groups, given, sequential=sequential).model
    with torch.no_grad():
        torch.testing.assert_close(found[True](x), found[False](x))
    one, other = state(found[True]), state(found[False])
    assert one["2.bias"].abs().max() > 1e-3
    torch.testing.assert_close(one["3.running_mean"] - one["2.bias"], other["3.running_mean"])
    torch.testing.assert_close(one["2.weight"], other["2.weight"])


def test_weights_too_large_for_the_dtype_name_the_layer():
    model, _, _, _, _ = between()
    with torch.no_grad():
        model.first.weight[1:] = model.first.weight[:1] * torch.tensor([1.0, 1, 1, 1, 1])[:, None]
        model.first.bias[:] = model.first.bias[0]
        model.second.fill_(3e4)
    model, x = model.half(), torch.randn(40, 4).half()
    groups = find_groups(trace(model, (x[:2],)))
    plan = dataclasses.replace(plan_of(groups), keep={group.name: (0,) for group in groups})
    removal = remove(model, plan, groups)
    with pytest.raises(CalibrationError, match=r"second: .*float16"):
        reconstruct(model, removal, plan, groups, batches(((x / 1e3,), {})), damping=0.0)


def test_inference_mode_gives_the_same():
    model, removal, plan, groups, given = between()
    outside = reconstruct(model, removal, plan, groups, given)
    with torch.inference_mode():
        inside = reconstruct(model, remove(model, plan, groups), plan, groups, given)
    assert all(torch.equal(value, state(inside.model)[name]) for name, value in state(outside.model).items())
    assert not any(parameter.is_inference() for parameter in inside.model.parameters())
