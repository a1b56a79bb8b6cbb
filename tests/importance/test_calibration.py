import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.errors import CalibrationError, SelectionError
from prunekit.importance import collect
from prunekit.types import Granularity, Group, Slice

NEEDS = {"first_order"}


def by_hand(model, batches, loss):
    """Oracle: backward on a deep copy in float64, the products written out for each channel."""
    total = np.zeros(4)
    for batch in batches:
        model.zero_grad()
        loss(model(*batch.args), batch).backward()

        def product(parameter):
            return (parameter.detach() * parameter.grad).double().numpy()

        total += np.abs(
            product(model.conv.weight).sum(axis=(1, 2, 3))
            + product(model.conv.bias)
            + product(model.bn.weight)
            + product(model.bn.bias)
            + product(model.head.weight).reshape(3, 4, 9).sum(axis=(0, 2))
        )
    return total / len(batches)


def copy_of(model):
    twin = type(model)()
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def test_first_order_is_the_mean_magnitude_of_the_summed_products(model, group, batches, loss):
    found = collect(model, batches, groups=[group], needs=NEEDS, loss=loss)
    np.testing.assert_allclose(
        found.values["first_order"][group.name], by_hand(copy_of(model), batches, loss), rtol=1e-5
    )
    assert found.batches == 3
    with torch.no_grad():
        losses = [float(loss(copy_of(model)(*batch.args), batch)) for batch in batches]
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-6)


def test_the_order_of_batches_does_not_matter_but_the_cut_does(model, group, batches, loss):
    whole = SimpleNamespace(
        args=(torch.cat([batch.args[0] for batch in batches]),),
        kwargs={},
        target=torch.cat([batch.target for batch in batches]),
    )

    def first_order(batches):
        found = collect(model, batches, groups=[group], needs=NEEDS, loss=loss)
        return found.values["first_order"][group.name]

    np.testing.assert_allclose(first_order(batches), first_order(batches[::-1]), rtol=1e-12)
    # |mean| <= mean of ||: one batch can only score lower
    assert (first_order([whole]) <= first_order(batches) * (1 + 1e-6)).all()
    assert (first_order([whole]) < first_order(batches) * 0.99).any()


def test_keyword_arguments_reach_the_model(group, batches, loss, model):
    by_name = [SimpleNamespace(args=(), kwargs={"x": b.args[0]}, target=b.target) for b in batches]
    expected = collect(model, batches, groups=[group], needs=NEEDS, loss=loss)
    found = collect(model, by_name, groups=[group], needs=NEEDS, loss=loss)
    assert (
        found.values["first_order"][group.name].tolist()
        == expected.values["first_order"][group.name].tolist()
    )


def test_frozen_parameters_are_differentiated_and_stay_frozen(model, group, batches, loss):
    expected = collect(model, batches, groups=[group], needs=NEEDS, loss=loss)
    model.requires_grad_(False)
    with torch.inference_mode():
        found = collect(model, batches, groups=[group], needs=NEEDS, loss=loss)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    np.testing.assert_array_equal(
        found.values["first_order"][group.name], expected.values["first_order"][group.name]
    )


class Restless(nn.Module):
    """Changes whatever a forward pass can change: buffers in place and by name, the random state."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.off = nn.Sequential(nn.Dropout(0.5))
        self.register_buffer("counted", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("late", None)

    def forward(self, x):
        self.counted.data += 1
        self.replaced = torch.rand(2)
        self.late = torch.ones(1)
        random.random()
        np.random.rand()  # noqa: NPY002
        return self.off(self.linear(x)).sum() * torch.rand(()) * (2.0 if self.training else 1.0)


@pytest.mark.parametrize("fails", [False, True])
def test_a_restless_model_is_left_as_found(fails):
    model = Restless()
    model.off.eval()
    model.linear.bias.requires_grad_(False)
    model.linear.weight.grad = torch.full((4, 3), 7.0)
    seen = []
    model.linear.weight.register_hook(lambda gradient: seen.append("tensor hook"))
    model.linear.register_forward_hook(lambda module, args, output: seen.append(module.training))
    weight, grad, replaced = model.linear.weight, model.linear.weight.grad, model.replaced
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    hooks = len(model.linear._forward_hooks), len(model.linear._backward_hooks)
    whole = np.arange(4)
    slices = (
        Slice("linear.weight", 0, whole, "producer"),
        Slice("linear.bias", 0, whole, "follower"),
    )
    group = Group("linear.weight:0", Granularity.NEURON, 4, 1, slices)
    batch = SimpleNamespace(args=(torch.ones(2, 3),), kwargs={})
    arguments = {"groups": [group], "needs": NEEDS}
    if fails:
        with pytest.raises(ZeroDivisionError):
            collect(model, [batch], loss=lambda outputs, batch: outputs / (1 // 0), **arguments)
    else:
        collect(model, [batch, batch], loss=lambda outputs, batch: outputs, **arguments)
        assert seen[0] is False
    assert model.training
    assert model.linear.training
    assert not model.off.training
    assert not model.off[0].training
    assert model.linear.weight is weight
    assert weight.grad is grad
    assert (grad == 7).all()
    assert model.linear.bias.grad is None
    assert (weight.requires_grad, model.linear.bias.requires_grad) == (True, False)
    assert model.replaced is replaced
    assert model.late is None
    assert {n: v.tolist() for n, v in model.state_dict().items()} == {n: v.tolist() for n, v in state.items()}
    assert random.getstate() == random_states[0]
    assert np.random.get_state()[1].tolist() == random_states[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), random_states[2])
    assert (len(model.linear._forward_hooks), len(model.linear._backward_hooks)) == hooks


def test_no_needs_runs_nothing(model, group):
    def never():
        raise AssertionError
        yield

    found = collect(model, never(), groups=[group], needs=(), loss=None)
    assert (found.batches, dict(found.values)) == (0, {})


def test_a_parameter_the_loss_does_not_reach_counts_as_zero(group, model, batches):
    loss = collect(
        model, batches, groups=[group], needs=NEEDS, loss=lambda outputs, batch: model.conv.bias[0] * 2
    )
    assert loss.values["first_order"][group.name][1:].tolist() == [0, 0, 0]
    np.testing.assert_allclose(
        loss.values["first_order"][group.name][0], abs(2 * model.conv.bias[0].item()), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda outputs, batch: outputs.mean() * float("nan"), "loss of calibration batch 0: It is nan"),
        (lambda outputs, batch: outputs.mean() / 0, "It is -?inf"),
        (lambda outputs, batch: outputs, r"It has the shape \(8, 3\).*one scalar"),
        (lambda outputs, batch: 1.0, "It has the type"),
        (lambda outputs, batch: outputs.mean().detach(), "does not depend on any parameter"),
        (lambda outputs, batch: torch.ones((), requires_grad=True), "does not depend on any parameter"),
        (None, "need a loss and none was given"),
    ],
)
def test_a_loss_that_cannot_be_used_is_explained(model, group, batches, loss, message):
    with pytest.raises(CalibrationError, match=message):
        collect(model, batches, groups=[group], needs=NEEDS, loss=loss)


def test_a_gradient_that_is_not_finite_names_the_parameter(model, group, batches):
    def loss(outputs, batch):
        return torch.sqrt(model.bn.weight[2] * 0) + outputs.mean()

    with pytest.raises(CalibrationError, match=r"gradient of the parameter 'bn\.weight' holds NaN"):
        collect(model, batches, groups=[group], needs=NEEDS, loss=loss)


def test_no_batches_and_unknown_needs_are_errors(model, group, loss):
    with pytest.raises(CalibrationError, match="There are no calibration batches"):
        collect(model, iter(()), groups=[group], needs=NEEDS, loss=loss)
    with pytest.raises(SelectionError, match=r"There is no statistic.*hessian"):
        collect(model, [], groups=[group], needs={"hessian"}, loss=loss)
