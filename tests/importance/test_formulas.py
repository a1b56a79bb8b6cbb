import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from prunekit.errors import ShapeError
from prunekit.importance.gradient import first_order_change
from prunekit.importance.magnitude import (
    per_slice,
    score_geometric_median,
    score_l1,
    score_l2,
    score_lamp,
    score_linf,
)
from prunekit.importance.view import GroupView, ModelTensors
from prunekit.types import Granularity, Group, Slice

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


def test_linf_is_the_largest_magnitude():
    expected = [max(abs(value) for value in row) for row in WEIGHT]
    np.testing.assert_array_equal(score_linf(torch.from_numpy(WEIGHT)), expected)


def test_geometric_median_is_the_sum_of_distances():
    expected = [sum(np.linalg.norm(row - other) for other in WEIGHT) for row in WEIGHT]
    np.testing.assert_allclose(score_geometric_median(torch.from_numpy(WEIGHT)), expected, rtol=1e-7)


def test_geometric_median_is_the_same_in_pieces():
    """Oracle: all distances at once, in NumPy; more units than are taken at once."""
    weight = np.random.default_rng(2).normal(size=(600, 3))
    expected = np.sqrt(((weight[:, None] - weight[None]) ** 2).sum(axis=2)).sum(axis=1)
    np.testing.assert_allclose(score_geometric_median(torch.from_numpy(weight)), expected, rtol=1e-7)


def lamp(sizes):
    """Oracle: the paper's sum over all units at least as large, by a loop."""
    return [size / sum(other for other in sizes if other >= size) for size in sizes]


def test_lamp_is_the_share_of_what_is_left():
    sizes = (WEIGHT**2).sum(axis=1)
    found = score_lamp(torch.from_numpy(WEIGHT))
    np.testing.assert_allclose(found, lamp(sizes.tolist()), rtol=1e-12)
    assert found.max() == 1  # the largest unit is all that is left
    assert np.argsort(found.numpy()).tolist() == np.argsort(sizes).tolist()


def test_lamp_gives_equal_units_equal_scores_and_zeros_zero():
    weight = torch.tensor([[2.0], [0.0], [1.0], [-2.0], [1.0]], dtype=torch.float64)
    np.testing.assert_allclose(score_lamp(weight), [0.5, 0, 0.1, 0.5, 0.1])
    assert score_lamp(torch.zeros(3, 2, dtype=torch.float64)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("formula", [score_geometric_median, score_lamp])
def test_units_without_part_in_a_slice_are_not_compared_with(formula):
    """Unit 3 has no row in the tensor: the others score as if it did not exist, and it scores nothing."""
    model = nn.ParameterDict({"w": torch.from_numpy(WEIGHT[:3].copy())})
    group = Group("w:0", Granularity.NEURON, 4, 1, (Slice("w", 0, np.arange(3), "producer"),))
    (row,) = per_slice(formula)(GroupView(group, ModelTensors(model), ("producer",), None, 0))
    np.testing.assert_allclose(row[:3], formula(torch.from_numpy(WEIGHT[:3])), rtol=1e-7)
    assert np.isnan(row[3])
