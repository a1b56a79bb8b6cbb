"""Complex parameters: scores of magnitudes and of gradients, against NumPy and against the loss itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.zoo.parameters import Turned
from torch import nn

from prunekit.graph import find_groups, trace
from prunekit.importance import collect, score
from prunekit.importance.gather import gather
from prunekit.workload import Batch


def turned():
    torch.manual_seed(0)
    model = Turned().double()
    model.turn = nn.Parameter(torch.randn(8, dtype=torch.complex128))
    args = (torch.randn(5, 6, dtype=torch.float64),)
    groups = find_groups(trace(model, args))
    return model, args, groups, groups["first:neuron"]


def values(model: nn.Module, group) -> list[np.ndarray]:
    """``[units, k]`` of every slice, by hand: all of them run along dimension 0, but for the last layer's."""
    parameters = dict(model.named_parameters())
    return [
        np.moveaxis(parameters[part.tensor].detach().numpy(), part.dim, 0).reshape(group.size, -1)
        for part in group.slices
    ]


@pytest.mark.parametrize(
    ("criterion", "formula"),
    [
        ("l1", lambda rows: np.abs(rows).sum(1)),
        ("l2", lambda rows: np.sqrt((rows * rows.conj()).real.sum(1))),
    ],
)
def test_norms_are_of_the_magnitudes(criterion, formula):
    model, _, groups, group = turned()
    assert any(np.iscomplexobj(rows) for rows in values(model, group))
    found = score(model, groups, criterion, reduction="sum", normalization="none")
    expected = sum(formula(rows) for rows in values(model, group))
    np.testing.assert_allclose(found[group.name], expected, rtol=1e-6)


def test_taylor_is_the_real_part_of_conjugate_gradient_times_weight():
    model, args, groups, group = turned()
    stats = collect(
        model,
        [Batch(args=args)],
        groups=groups,
        needs={"first_order"},
        loss=lambda out, _: out.square().mean(),
    )
    found = score(model, groups, "taylor", stats=stats, normalization="none")[group.name]
    model(*args).square().mean().backward()
    change = np.zeros(group.size)
    for part in group.slices:
        parameter = model.get_parameter(part.tensor)
        weight, gradient = parameter.detach().numpy(), parameter.grad.numpy()
        products = np.moveaxis((gradient.conj() * weight).real, part.dim, 0)
        change += products.reshape(group.size, -1).sum(1)
    np.testing.assert_allclose(found, np.abs(change), rtol=1e-6)


def test_products_of_rows_are_the_derivative_of_the_loss():
    """Oracle: a central difference of the loss when one unit's complex weight is scaled by 1 + h."""
    model, args, _, group = turned()
    part = next(part for part in group.slices if part.tensor == "turn")
    model(*args).square().mean().backward()
    products = (gather(model.turn.detach(), part, group) * gather(model.turn.grad, part, group)).sum(1)
    step = 1e-6
    for unit in range(group.size):
        ends = []
        for factor in (1 + step, 1 - step):
            moved = model.turn.detach().clone()
            moved[unit] *= factor
            with torch.no_grad():
                ends.append(torch.func.functional_call(model, {"turn": moved}, args).square().mean())
        assert float((ends[0] - ends[1]) / (2 * step)) == pytest.approx(
            float(products[unit]), rel=1e-5, abs=1e-9
        )
