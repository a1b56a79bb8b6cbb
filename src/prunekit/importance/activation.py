"""Criteria that look at the activations of a unit where it is read, on calibration data.

A unit is observed at the operators with weights that read it: the inputs of the convolutions and linear
layers behind it, after whatever lies in between. Each such operator is a row; a unit that only ever meets
other activations (a head dimension of queries and keys) is observed where it is produced. Recurrent layers
and bilinear forms are one operator, inside which nothing is observed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prunekit.importance.view import GroupView, PerIndex, Reading, Rows


def _per_reading(formula: Callable[[Reading], PerIndex], *, mean: bool) -> Callable[[GroupView], Rows]:
    """Turn a formula per index into one row per reading: the mean or sum over the indices of a unit."""

    def rows(view: GroupView) -> Rows:
        return np.stack(
            [_row(formula(reading), reading, view.group.size, mean) for reading in view.readings()]
        )

    return rows


def _row(values: PerIndex, reading: Reading, size: int, mean: bool) -> PerIndex:
    own = reading.units >= 0
    units = reading.units[own]
    indices = np.bincount(units, minlength=size)
    total = np.bincount(units, weights=values[own], minlength=size)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(indices > 0, total / indices if mean else total, np.nan)


def mean_magnitude(reading: Reading) -> PerIndex:
    """Average the magnitude of an index over all its values.

    ``a[j] = mean_n |x[n, j]|``; of a unit the mean over its indices.

    Returns:
        ``[n]`` float64, >= 0, in units of the activation.

    Source: Molchanov et al., 2017, Pruning Convolutional Neural Networks for Resource Efficient Inference,
    section 2.2 (mean activation), https://arxiv.org/abs/1611.06440. Deviation: magnitudes, which changes
    nothing behind a ReLU and lets positive and negative values behind other functions not cancel.
    """
    return reading.magnitude / np.maximum(reading.count, 1)


def mean_square(reading: Reading) -> PerIndex:
    """Average the square of an index over all its values.

    ``q[j] = mean_n x[n, j] ** 2``; the score of a unit is ``sqrt(sum_j q[j])``, the root mean square of the
    Euclidean norm of its activations.

    Returns:
        ``[n]`` float64, >= 0, in squared units of the activation.

    Source: own formula; the norm of the activation in place of that of the weight in He et al., 2018, eq. 2,
    https://arxiv.org/abs/1808.06866.
    """
    return reading.squares / np.maximum(reading.count, 1)


def variance(reading: Reading) -> PerIndex:
    """Say how much an index varies over all its values.

    ``v[j] = mean_n (x[n, j] - mean_n x[n, j]) ** 2``; of a unit the sum over its indices.

    Returns:
        ``[n]`` float64, >= 0, in squared units of the activation.

    Source: Molchanov et al., 2017, section 2.2 (standard deviation of the activation),
    https://arxiv.org/abs/1611.06440. Deviation: the variance, which adds up over the indices of a unit.
    """
    return reading.variance


def share_not_zero(reading: Reading) -> PerIndex:
    """Say how often an index is not exactly zero.

    ``s[j] = 1 - APoZ[j]``, ``APoZ[j] = mean_n [x[n, j] == 0]``; of a unit the mean over its indices.

    It tells units apart where they pass through a ReLU before they are read; elsewhere all of them score 1.

    Returns:
        ``[n]`` float64, in ``[0, 1]``.

    Source: Hu et al., 2016, Network Trimming, eq. 1, https://arxiv.org/abs/1607.03250. Deviation: the
    complement, because the highest score stays.
    """
    return 1 - reading.zeros / np.maximum(reading.count, 1)


def weight_times_norm(reading: Reading) -> PerIndex:
    """Multiply the weights that read an index with the norm of its activations.

    ``s[j] = sum_i |W[i, j]| * sqrt(sum_n x[n, j] ** 2)``; of a unit the sum over its indices.

    The norm is over all calibration values, as in the paper, so it grows with their number.

    Returns:
        ``[n]`` float64, >= 0, in units of the operator's output.

    Source: Sun et al., 2024, A Simple and Effective Pruning Approach for Large Language Models (Wanda), eq.
    1, https://arxiv.org/abs/2306.11695. Deviation: the scores of the weights that go together are added.
    """
    assert reading.weight_magnitude is not None
    return reading.weight_magnitude * np.sqrt(reading.squares)


def fluctuation(reading: Reading) -> PerIndex:
    """Say how much an operator's output loses when an index is replaced by its mean.

    ``s[j] = sum_n (x[n, j] - mean_n x[n, j]) ** 2 / (N - 1) * sum_i W[i, j] ** 2``; of a unit the sum over
    its indices.

    Returns:
        ``[n]`` float64, >= 0, in squared units of the operator's output.

    Source: An et al., 2024, Fluctuation-based Adaptive Structured Pruning for Large Language Models (FLAP),
    section 4.2 (weighted input feature variance), https://arxiv.org/abs/2312.11983. Deviations: values at all
    positions count alike, where the published code averages per example first; the paper standardises scores
    per layer, which is ``normalization="gaussian"`` here; its bias compensation belongs to reconstruction.
    """
    assert reading.weight_squares is not None
    spread = reading.variance * reading.count / np.maximum(reading.count - 1, 1)
    return spread * reading.weight_squares


score_activation_mean = _per_reading(mean_magnitude, mean=True)
score_activation_variance = _per_reading(variance, mean=False)
score_apoz = _per_reading(share_not_zero, mean=True)
score_wanda = _per_reading(weight_times_norm, mean=False)
score_flap = _per_reading(fluctuation, mean=False)


def score_activation_l2(view: GroupView) -> Rows:
    """Score each unit by ``sqrt(sum_j mean_square[j])`` (:func:`mean_square`).

    Returns:
        ``[readings, units]`` float64, >= 0, in units of the activation; higher = keep.
    """
    return np.sqrt(_per_reading(mean_square, mean=False)(view))


def why_not_observed(view: GroupView) -> str:
    """Say why a group's activations cannot be observed, or ""; before calibration nothing is known."""
    if view.stats is None or view.stats.readings.get(view.group.name, (0,)):
        return ""
    return "no operator with weights reads or produces its units"


def why_not_weighted(view: GroupView) -> str:
    """Say why no weights that read a group's units are known, or ""."""
    known = () if view.stats is None else view.stats.readings.get(view.group.name, ())
    if any(reading.weight_magnitude is None for reading in known):
        return "its units are only multiplied with other activations, no weights read them"
    return why_not_observed(view)
