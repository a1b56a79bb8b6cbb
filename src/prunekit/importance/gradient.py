"""Criteria that look at the loss's gradient on calibration data."""

from __future__ import annotations

from torch import Tensor

from prunekit.errors import ShapeError
from prunekit.importance.view import GroupView, Rows

FIRST_ORDER = "first_order"
"""The statistic ``mean_b |sum_i g_b[u, i] * w[u, i]|``, ``[units]``, in units of the loss."""


def first_order_change(weight: Tensor, gradient: Tensor) -> Tensor:
    """Estimate by how much the loss would fall if each unit's parameters were set to zero.

    ``change[u] = sum_i gradient[u, i] * weight[u, i]``

    It is signed, so that the slices of a unit can be added before the magnitude is taken.

    Args:
        weight: ``[units, k]``, any float dtype.
        gradient: ``[units, k]``, gradient of one batch's loss.

    Returns:
        ``[units]``, dtype of the arguments, in units of the loss.

    Raises:
        ShapeError: the two shapes differ.

    Source: first-order term of Molchanov et al., 2019, Importance Estimation for Neural Network Pruning,
    eq. 8 before it is squared, https://arxiv.org/abs/1906.10771. Deviation: none.
    """
    if weight.shape != gradient.shape:
        raise ShapeError(
            f"The weight has the shape {tuple(weight.shape)}, its gradient {tuple(gradient.shape)}",
            expected="the same shape twice",
        )
    return (weight * gradient).sum(dim=1)


def score_taylor(view: GroupView) -> Rows:
    """Score each unit by the first-order change of the loss when it is removed.

    ``score[u] = mean_b |sum_slices sum_i gradient_b[u, i] * weight[u, i]|``

    The magnitude is taken per batch, after all slices of the unit are added and before the batches are
    averaged: in a trained model the gradient averaged over the data is near zero, and with it every score
    that averages first. So the score depends on how the data is cut into batches (smaller batches give
    larger scores, a batch of one example is the per-example criterion), not on the order of the batches.
    Every batch counts the same; a short last batch weighs its examples more.

    Returns:
        ``[1, units]`` float64, >= 0, in units of the loss; higher = keep. One row, because the sum over the
        slices is inside the magnitude: a reduction changes nothing.

    Raises:
        CalibrationError: the statistic was not gathered.

    Source: Molchanov et al., 2017, Pruning Convolutional Neural Networks for Resource Efficient Inference,
    eq. 8 (magnitude, averaged over the data), https://arxiv.org/abs/1611.06440, with the parameters of a
    unit in place of its activations as in Molchanov et al., 2019, eq. 8, https://arxiv.org/abs/1906.10771.
    Deviations: the magnitude and not the square of 2019, so that the score stays in units of the loss and one
    odd batch does not decide; batches in place of examples, so that one backward pass serves many examples.
    """
    return view.statistic(FIRST_ORDER)[None, :]
