"""Criteria of gradients against gradients written out by hand in NumPy float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.errors import CalibrationError, SelectionError
from prunekit.graph import find_groups, trace
from prunekit.importance import CRITERIA, Movement, collect, score
from prunekit.types import Granularity

EXACT = {"rtol": 1e-6, "atol": 1e-12}


def network() -> nn.Sequential:
    """Five inputs, four neurons, three outputs, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()


def squares(outputs, batch):
    return ((outputs - batch.target) ** 2).mean()


def data(count=3, size=6):
    draw = torch.Generator().manual_seed(1)
    return [
        SimpleNamespace(
            args=(torch.randn(size, 5, generator=draw, dtype=torch.float64),),
            kwargs={},
            target=torch.randn(size, 3, generator=draw, dtype=torch.float64),
        )
        for _ in range(count)
    ]


def backward(arrays, batch):
    """The gradients of the mean square error, by the chain rule, and the hidden activations and theirs."""
    first, bias, second, shift = arrays
    x, target = batch.args[0].numpy(), batch.target.numpy()
    before = x @ first.T + bias
    hidden = np.maximum(before, 0)
    error = 2 * (hidden @ second.T + shift - target) / target.size
    of_hidden = error @ second
    of_before = of_hidden * (before > 0)
    return (of_before.T @ x, of_before.sum(0), error.T @ hidden, error.sum(0)), hidden, of_hidden


def arrays_of(model):
    return [p.detach().numpy().copy() for p in model.parameters()]


def rows(arrays, gradients):
    """Weights and gradients of the four neurons in each slice: producer, its bias, consumer."""
    pairs = zip(arrays[:3], gradients[:3], strict=True)
    (w1, g1), (b, gb), (w2, g2) = pairs
    return [(w1, g1), (b[:, None], gb[:, None]), (w2.T, g2.T)]


FORMULAS = {
    "gradient": lambda w, g: np.abs(g).sum(axis=1),
    "snip": lambda w, g: np.abs(w * g).sum(axis=1),
    "fisher": lambda w, g: 0.5 * (g**2 * w**2).sum(axis=1),
}


def found_by(criterion, model, batches, **arguments):
    groups = find_groups(trace(model, batches[0].args))
    (group,) = groups
    stats = collect(model, batches, groups=groups, needs=CRITERIA[criterion].needs, loss=squares)
    return score(model, groups, criterion, stats=stats, normalization="none", **arguments)[group.name]


@pytest.mark.parametrize("criterion", FORMULAS)
@pytest.mark.parametrize("reduction", ["sum", "mean", "max"])
def test_per_slice_formulas(criterion, reduction):
    model, batches = network(), data()
    arrays = arrays_of(model)
    per_batch = [
        [FORMULAS[criterion](w, g) for w, g in rows(arrays, backward(arrays, batch)[0])] for batch in batches
    ]
    expected = getattr(np.mean(per_batch, axis=0), reduction)(axis=0)
    np.testing.assert_allclose(found_by(criterion, model, batches, reduction=reduction), expected, **EXACT)


def test_fisher_of_single_examples_is_half_the_empirical_fisher_times_the_squared_weight():
    """Oracle: one gradient per example, squared and averaged over the examples."""
    model, batches = network(), data(count=8, size=1)
    arrays = arrays_of(model)
    information = [np.zeros_like(array) for array in arrays]
    for batch in batches:
        for total, gradient in zip(information, backward(arrays, batch)[0], strict=True):
            total += gradient**2 / len(batches)
    expected = sum((0.5 * f * w**2).sum(axis=1) for w, f in rows(arrays, information))
    np.testing.assert_allclose(found_by("fisher", model, batches, reduction="sum"), expected, **EXACT)


def test_taylor_is_the_magnitude_of_the_sum_over_all_slices():
    model, batches = network(), data()
    arrays = arrays_of(model)
    expected = np.mean(
        [
            np.abs(sum((w * g).sum(axis=1) for w, g in rows(arrays, backward(arrays, batch)[0])))
            for batch in batches
        ],
        axis=0,
    )
    np.testing.assert_allclose(found_by("taylor", model, batches), expected, **EXACT)


def test_taylor_on_gates_is_activation_times_its_gradient():
    """Oracle: the papers' sum over examples of activation times derivative, which never looks at weights."""
    model, batches = network(), data()
    expected = []
    for batch in batches:
        _, hidden, of_hidden = backward(arrays_of(model), batch)
        expected.append(np.abs((hidden * of_hidden).sum(axis=0)))
    np.testing.assert_allclose(found_by("taylor_gate", model, batches), np.mean(expected, axis=0), **EXACT)


def test_movement_is_accumulated_over_training():
    """Oracle: gradient descent in NumPy, with the sum of -gradient * weight taken along."""
    model, batches = network(), data(count=5)
    groups = find_groups(trace(model, batches[0].args))
    (group,) = groups
    movement = Movement(model, groups)
    arrays, moved = arrays_of(model), [np.zeros(4) for _ in range(3)]
    for batch in batches:
        model.zero_grad()
        squares(model(*batch.args), batch).backward()
        movement.update()
        gradients = backward(arrays, batch)[0]
        for total, (w, g) in zip(moved, rows(arrays, gradients), strict=True):
            total -= (w * g).sum(axis=1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.3 * parameter.grad
        arrays = [w - 0.3 * g for w, g in zip(arrays, gradients, strict=True)]
    stats = movement.statistics()
    np.testing.assert_allclose(stats.values["movement"][group.name], moved, **EXACT)
    assert (np.array(moved) < 0).any()
    assert stats.batches == 5
    found = score(model, groups, "movement", stats=stats, normalization="none", reduction="sum")
    np.testing.assert_allclose(found[group.name], sum(m - m.min() for m in moved), rtol=1e-6, atol=1e-7)


def test_movement_takes_weights_and_gradients_by_name():
    model, batches = network(), data(count=1)
    groups = find_groups(trace(model, batches[0].args))
    (group,) = groups
    squares(model(*batches[0].args), batches[0]).backward()
    own, given = Movement(model, groups), Movement(model, groups)
    own.update()
    parameters = dict(model.named_parameters())
    given.update(parameters, {name: p.grad for name, p in parameters.items()})
    for movement in (own, given):
        assert movement.steps == 1
    np.testing.assert_array_equal(
        own.statistics().values["movement"][group.name], given.statistics().values["movement"][group.name]
    )


def test_movement_without_steps_or_gradients_is_an_error():
    model, batches = network(), data(count=1)
    groups = find_groups(trace(model, batches[0].args))
    movement = Movement(model, groups)
    with pytest.raises(CalibrationError, match="No training step"):
        movement.statistics()
    with pytest.raises(
        CalibrationError, match=r"step 0: No parameter of the groups has a gradient.*after backward"
    ):
        movement.update()
    with pytest.raises(CalibrationError, match=r"gradient of the parameter '0\.weight' holds NaN"):
        movement.update(gradients={"0.weight": torch.full((4, 5), float("nan"))})
    assert movement.steps == 0
    with pytest.raises(SelectionError, match=r"does not gather 'movement'.*Movement\(model, groups\)"):
        collect(model, batches, groups=groups, needs={"movement"}, loss=squares)


class Heads(nn.Module):
    """Attention whose three heads have gates; what follows is linear."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.head = nn.Linear(12, 2)

    def forward(self, x, gates=None):
        q, k, v = (layer(x).view(*x.shape[:2], 3, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        if gates is not None:
            mixed = mixed * gates[:, None, None]
        return self.head(self.out(mixed.transpose(1, 2).flatten(2)).mean(1))


def heads():
    torch.manual_seed(0)
    model = Heads().double().eval()
    batches = [
        SimpleNamespace(
            args=(torch.randn(size, 5, 12, dtype=torch.float64),), kwargs={}, target=torch.zeros(1)
        )
        for size in (6, 3)
    ]
    groups = find_groups(trace(model, batches[0].args))
    (group,) = (group for group in groups if group.granularity is Granularity.HEAD)
    return model, batches, groups, group


def test_head_importance_is_the_derivative_by_a_gate():
    """Oracle: a gate on each head that is really there, differentiated by autograd (Michel et al., eq. 2)."""
    model, batches, groups, group = heads()
    expected = torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        gates = torch.ones(3, dtype=torch.float64, requires_grad=True)
        expected += torch.autograd.grad(squares(model(*batch.args, gates), batch), gates)[0].abs() / 2
    stats = collect(model, batches, groups=groups, needs={"gate"}, loss=squares)
    np.testing.assert_allclose(stats.values["gate"][group.name], expected, **EXACT)


def test_output_variance_is_the_covariance_of_a_heads_part_with_the_output():
    """Oracle: what follows the heads is linear, so a head's part is the output's difference without it; the
    covariances are those of NumPy, pooled over the batches by their degrees of freedom."""
    model, batches, groups, group = heads()
    covariance, variance = np.zeros(3), 0.0
    with torch.no_grad():
        for batch in batches:
            whole = model(*batch.args).numpy()
            variance += whole.var(axis=0).sum() * len(whole)
            for head in range(3):
                gates = torch.ones(3, dtype=torch.float64)
                gates[head] = 0
                part = whole - model(*batch.args, gates).numpy()
                for k in range(2):
                    covariance[head] += np.cov(part[:, k], whole[:, k], bias=True)[0, 1] * len(whole)
    np.testing.assert_allclose(covariance.sum(), variance)  # the heads are all that varies
    stats = collect(model, batches, groups=groups, needs={"output_variance"})
    found = score(model, groups, "output_variance", stats=stats, normalization="none", fallback="random")
    np.testing.assert_allclose(found[group.name], np.abs(covariance) / variance, rtol=1e-6)
    assert np.isnan(stats.loss)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda x: x.mean(), "None of them is a float tensor"),
        (lambda x: x[:1] * 1, "has one example"),
        (lambda x: x * float("nan"), "hold NaN"),
        (lambda x: x.detach(), "do not depend on any parameter"),
        (lambda x: x * 0, "outputs are the same for all examples"),
    ],
)
def test_outputs_whose_variance_says_nothing_are_refused(outputs, message):
    model, batches = network(), data()
    groups = find_groups(trace(model, batches[0].args))
    hook = model.register_forward_hook(lambda module, args, output: outputs(output))
    with pytest.raises(CalibrationError, match=message):
        collect(model, batches, groups=groups, needs={"output_variance"})
    hook.remove()


def test_groups_without_a_gate_are_named():
    model, batches, groups, _ = heads()
    with pytest.raises(SelectionError, match="'taylor_gate' says nothing about the groups 'q:head_dim'"):
        score(
            model,
            groups,
            "taylor_gate",
            stats=collect(model, batches, groups=groups, needs={"gate"}, loss=squares),
        )
