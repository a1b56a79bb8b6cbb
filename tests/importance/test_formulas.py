import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from prunekit.errors import ShapeError
from prunekit.importance.gradient import first_order_change
from prunekit.importance.magnitude import score_l1, score_l2

WEIGHT = np.random.default_rng(0).normal(size=(7, 11))
GRADIENT = np.random.default_rng(1).normal(size=(7, 11))


def test_l1_is_the_sum_of_magnitudes():
    expected = [sum(abs(value) for value in row) for row in WEIGHT]
    np.testing.assert_allclose(score_l1(torch.from_numpy(WEIGHT)), expected, rtol=1e-14)


def test_l2_is_the_euclidean_norm():
    expected = np.linalg.norm(WEIGHT, axis=1)
    np.testing.assert_allclose(score_l2(torch.from_numpy(WEIGHT)), expected, rtol=1e-14)


@pytest.mark.parametrize(("formula", "order"), [(score_l1, 1), (score_l2, 2)])
def test_the_order_is_that_of_torch_ln_structured(formula, order):
    """Oracle: torch.nn.utils.prune.ln_structured removes the lowest rows first, one more each time."""
    scores = formula(torch.from_numpy(WEIGHT))
    for removed in range(1, 7):
        layer = nn.Linear(11, 7, dtype=torch.float64)
        layer.weight.data = torch.from_numpy(WEIGHT.copy())
        prune.ln_structured(layer, "weight", amount=removed, n=order, dim=0)
        gone = {row for row in range(7) if not layer.weight_mask[row].any()}
        assert gone == set(np.argsort(scores.numpy())[:removed].tolist())


def test_first_order_change_is_signed():
    expected = np.einsum("ui,ui->u", WEIGHT, GRADIENT)
    assert (expected < 0).any()
    assert (expected > 0).any()
    change = first_order_change(torch.from_numpy(WEIGHT), torch.from_numpy(GRADIENT))
    np.testing.assert_allclose(change, expected, rtol=1e-12)


def test_first_order_change_of_a_linear_loss_is_exact():
    """Oracle: for loss = sum(g * w) removing a unit changes the loss by exactly its term."""
    weight, gradient = torch.from_numpy(WEIGHT), torch.from_numpy(GRADIENT)
    for unit in range(7):
        without = weight.clone()
        without[unit] = 0
        difference = (gradient * weight).sum() - (gradient * without).sum()
        torch.testing.assert_close(first_order_change(weight, gradient)[unit], difference)


def test_first_order_change_refuses_unequal_shapes():
    with pytest.raises(ShapeError, match=r"\(7, 11\), its gradient \(7, 1\)"):
        first_order_change(torch.zeros(7, 11), torch.zeros(7, 1))
