"""Criteria that look at the loss's gradient on calibration data."""

from __future__ import annotations

from torch import Tensor

from prunekit.errors import ShapeError
from prunekit.importance.view import GroupView, Rows

FIRST_ORDER = "first_order"
"""The statistic ``mean_b |sum_i g_b[u, i] * w[u, i]|`` over all slices, ``[units]``, in units of the loss."""

GATE = "gate"
"""The statistic ``mean_b |sum_i g_b[u, i] * w[u, i]|`` over consumers, ``[units]``, in units of the loss."""

GRADIENT = "gradient"
"""The statistic ``mean_b sum_i |g_b[u, i]|``, ``[slices, units]``, in units of the loss per weight."""

SENSITIVITY = "sensitivity"
"""The statistic ``mean_b sum_i |g_b[u, i] * w[u, i]|``, ``[slices, units]``, in units of the loss."""

FISHER = "fisher"
"""The statistic ``mean_b sum_i (g_b[u, i] * w[u, i]) ** 2``, ``[slices, units]``, in squares of the loss."""

OF_THE_LOSS = (FIRST_ORDER, GATE, GRADIENT, SENSITIVITY, FISHER)
"""The statistics that need a loss."""


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


def score_taylor_gate(view: GroupView) -> Rows:
    """Score each unit by the derivative of the loss with respect to a gate on it.

    ``score[u] = mean_b |dL_b / d gate[u]|`` at ``gate = 1``, and
    ``dL / d gate[u] = sum_consumers sum_i gradient[u, i] * weight[u, i]``

    The gate multiplies the unit wherever an operator with weights reads it: the channels of a head before the
    output projection, a neuron before the next layer. There ``weight * gate`` and ``activation * gate`` are
    the same, so the derivative ``sum activation * dL/d activation`` of the papers follows from the gradients
    of the consumers' weights, exactly and without looking at activations. The producer's rows and bias would
    give it only where nothing but homogeneous functions lies in between. It is read whatever the roles are.

    Returns:
        ``[1, units]`` float64, >= 0, in units of the loss; higher = keep.

    Raises:
        CalibrationError: the statistic was not gathered.

    Source: Michel et al., 2019, Are Sixteen Heads Really Better than One?, eq. 2,
    https://arxiv.org/abs/1905.10650; for channels Molchanov et al., 2017, eq. 8,
    https://arxiv.org/abs/1611.06440, and Molchanov et al., 2019, section 3.2 (gates),
    https://arxiv.org/abs/1906.10771. Deviation: batches in place of examples, as in :func:`score_taylor`.
    """
    return view.statistic(GATE)[None, :]


def why_no_gate(view: GroupView) -> str:
    """Say why no gate can be put on a group's units, or ""."""
    consumed = any(part.role == "consumer" and part.tensor in view.parameters for part in view.group.slices)
    return "" if consumed else "no weight reads its units, so a gate on them has no known derivative"


def score_gradient(view: GroupView) -> Rows:
    """Score each unit by how strongly the loss pulls at its parameters.

    ``score[u] = mean_b sum_i |gradient_b[u, i]|``, one row per slice

    In a trained model the gradient of the whole data is near zero; what is left is that of single batches, so
    the score depends on how the data is cut (:func:`score_taylor`).

    Returns:
        ``[slices, units]`` float64, >= 0, in units of the loss per weight; higher = keep.

    Raises:
        CalibrationError: the statistic was not gathered.

    Source: own formula, the norm of :func:`prunekit.importance.magnitude.score_l1` on the gradient.
    """
    return view.statistic(GRADIENT)


def score_snip(view: GroupView) -> Rows:
    """Score each unit by the sensitivities of its connections.

    ``score[u] = mean_b sum_i |gradient_b[u, i] * weight[u, i]|``, one row per slice

    Unlike :func:`score_taylor`, effects of opposite sign inside a unit do not cancel.

    Returns:
        ``[slices, units]`` float64, >= 0, in units of the loss; higher = keep.

    Raises:
        CalibrationError: the statistic was not gathered.

    Source: Lee et al., 2019, SNIP: Single-shot Network Pruning based on Connection Sensitivity,
    https://arxiv.org/abs/1810.02340. Deviations: sensitivities are added per unit; not divided by their sum
    over the network, which changes no order; with several batches, which the paper does not use, the mean
    over the batches' sensitivities; on the model as it is, not at initialisation.
    """
    return view.statistic(SENSITIVITY)


def score_fisher(view: GroupView) -> Rows:
    """Score each unit by the second-order change of the loss, with the Hessian's diagonal from the Fisher.

    ``score[u] = 1/2 * sum_i F[u, i] * weight[u, i] ** 2``, ``F[u, i] = mean_b gradient_b[u, i] ** 2``, one
    row per slice

    Returns:
        ``[slices, units]`` float64, >= 0, in squared units of the loss; higher = keep.

    Raises:
        CalibrationError: the statistic was not gathered.

    Source: LeCun et al., 1989, Optimal Brain Damage, the saliency ``1/2 h_kk u_k ** 2``, with the empirical
    Fisher information in place of the Hessian as in Theis et al., 2018, Faster gaze prediction with dense
    networks and Fisher pruning, section 3, https://arxiv.org/abs/1801.05787. Deviations: added per unit,
    where Theis et al. square the derivative of a gate; batches in place of examples, whose mean gradients are
    smaller: a batch of one example is the empirical Fisher itself, a larger one shrinks all scores of a model
    alike where the examples' gradients are independent.
    """
    return view.statistic(FISHER) / 2
