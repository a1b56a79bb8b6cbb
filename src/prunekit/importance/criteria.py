"""The closed table of criteria."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prunekit.importance.activation import (
    score_activation_l2,
    score_activation_mean,
    score_activation_variance,
    score_apoz,
    score_flap,
    score_wanda,
    why_not_observed,
    why_not_weighted,
)
from prunekit.importance.baseline import score_random
from prunekit.importance.experts import EXPERT_OUTPUT, score_reap, why_no_experts
from prunekit.importance.gradient import (
    FIRST_ORDER,
    FISHER,
    GATE,
    GRADIENT,
    SENSITIVITY,
    score_fisher,
    score_gradient,
    score_snip,
    score_taylor,
    score_taylor_gate,
    why_no_gate,
)
from prunekit.importance.layers import (
    BLOCK_INFLUENCE,
    BYPASS_LOSS,
    LAYER_GATE,
    score_block_influence,
    score_bypass_loss,
    score_layer_gate,
    why_no_layer,
)
from prunekit.importance.magnitude import (
    per_slice,
    score_geometric_median,
    score_l1,
    score_l2,
    score_lamp,
    score_linf,
)
from prunekit.importance.movement import MOVEMENT, score_movement
from prunekit.importance.norm_scale import score_bn_scale, why_no_bn_scale
from prunekit.importance.output_variance import OUTPUT_VARIANCE, score_output_variance
from prunekit.importance.removal import REMOVAL, score_removal, why_no_removal
from prunekit.importance.view import READINGS, GroupView, Rows


@dataclass(frozen=True)
class Criterion:
    """One way to tell how much a unit matters.

    Laws, tested for every row of :data:`CRITERIA`: scores are finite and >= 0, higher = keep; they follow a
    permutation of the units (those that are drawn excepted); the same inputs give the same scores; the model
    is only read; a group's scores do not depend on which other groups are scored.

    Attributes:
        name: its key in :data:`CRITERIA`.
        rows: what scores a group: ``[rows, units]`` float64, one row per slice, or a single row where the
            formula spans the slices by itself; NaN where a unit has no part in a row.
        summary: one line for tables and reports.
        source: where the formula comes from.
        needs: the calibration statistics it reads; empty = no data needed.
        unfit: says why it says nothing about a group, or ""; without statistics only what is known before.
    """

    name: str
    rows: Callable[[GroupView], Rows]
    summary: str
    source: str
    needs: frozenset[str] = frozenset()
    unfit: Callable[[GroupView], str] = lambda view: ""


_DATA_FREE = (
    Criterion(
        "l1",
        per_slice(score_l1),
        "sum of the magnitudes of the unit's parameters",
        "Li et al., 2017, https://arxiv.org/abs/1608.08710",
    ),
    Criterion(
        "l2",
        per_slice(score_l2),
        "Euclidean norm of the unit's parameters",
        "He et al., 2018, https://arxiv.org/abs/1808.06866",
    ),
    Criterion(
        "linf",
        per_slice(score_linf),
        "largest magnitude among the unit's parameters",
        "He et al., 2018, https://arxiv.org/abs/1808.06866",
    ),
    Criterion(
        "fpgm",
        per_slice(score_geometric_median),
        "distance to all other units: those near the geometric median go",
        "He et al., 2019, https://arxiv.org/abs/1811.00250",
        unfit=GroupView.why_no_common_slice,
    ),
    Criterion(
        "lamp",
        per_slice(score_lamp),
        "share of the squared weight left once all smaller units are gone",
        "Lee et al., 2021, https://arxiv.org/abs/2010.07611",
        unfit=GroupView.why_no_common_slice,
    ),
    Criterion(
        "bn_scale",
        score_bn_scale,
        "magnitude of the unit's batch-norm scale",
        "Liu et al., 2017, https://arxiv.org/abs/1708.06519",
        unfit=why_no_bn_scale,
    ),
    Criterion(
        "random",
        score_random,
        "a draw that knows nothing about the unit: the baseline",
        "Mittal et al., 2018, https://arxiv.org/abs/1801.10447",
    ),
)

_OF_GRADIENTS = (
    Criterion(
        "taylor",
        score_taylor,
        "first-order change of the loss when the unit goes, on calibration data",
        "Molchanov et al., 2017 and 2019, https://arxiv.org/abs/1906.10771",
        frozenset({FIRST_ORDER}),
    ),
    Criterion(
        "taylor_gate",
        score_taylor_gate,
        "derivative of the loss by a gate on the unit where it is read; for heads, head importance",
        "Michel et al., 2019, https://arxiv.org/abs/1905.10650",
        frozenset({GATE}),
        why_no_gate,
    ),
    Criterion(
        "gradient",
        score_gradient,
        "sum of the magnitudes of the gradient of the unit's parameters",
        "own formula",
        frozenset({GRADIENT}),
    ),
    Criterion(
        "snip",
        score_snip,
        "sum of the sensitivities of the unit's connections",
        "Lee et al., 2019, https://arxiv.org/abs/1810.02340",
        frozenset({SENSITIVITY}),
    ),
    Criterion(
        "fisher",
        score_fisher,
        "second-order change of the loss, the Hessian's diagonal from the empirical Fisher information",
        "Theis et al., 2018, https://arxiv.org/abs/1801.05787",
        frozenset({FISHER}),
    ),
    Criterion(
        "movement",
        score_movement,
        "how far training pushed the unit's parameters away from zero",
        "Sanh et al., 2020, https://arxiv.org/abs/2005.07683",
        frozenset({MOVEMENT}),
        GroupView.why_no_common_slice,
    ),
    Criterion(
        "output_variance",
        score_output_variance,
        "share of the variance of the model's output that the unit contributes",
        "own formula",
        frozenset({OUTPUT_VARIANCE}),
        why_no_gate,
    ),
)

_ACTIVATIONS = frozenset({READINGS})

_OF_ACTIVATIONS = (
    Criterion(
        "activation_mean",
        score_activation_mean,
        "mean magnitude of the unit's activations",
        "Molchanov et al., 2017, https://arxiv.org/abs/1611.06440",
        _ACTIVATIONS,
        why_not_observed,
    ),
    Criterion(
        "activation_l2",
        score_activation_l2,
        "root mean square of the norm of the unit's activations",
        "own formula",
        _ACTIVATIONS,
        why_not_observed,
    ),
    Criterion(
        "activation_variance",
        score_activation_variance,
        "variance of the unit's activations",
        "Molchanov et al., 2017, https://arxiv.org/abs/1611.06440",
        _ACTIVATIONS,
        why_not_observed,
    ),
    Criterion(
        "apoz",
        score_apoz,
        "how often the unit's activations are not zero",
        "Hu et al., 2016, https://arxiv.org/abs/1607.03250",
        _ACTIVATIONS,
        why_not_observed,
    ),
    Criterion(
        "wanda",
        score_wanda,
        "magnitude of the weights that read the unit times the norm of its activations",
        "Sun et al., 2024, https://arxiv.org/abs/2306.11695",
        _ACTIVATIONS,
        why_not_weighted,
    ),
    Criterion(
        "flap",
        score_flap,
        "fluctuation of the unit's activations, weighted with the weights that read it",
        "An et al., 2024, https://arxiv.org/abs/2312.11983",
        _ACTIVATIONS,
        why_not_weighted,
    ),
    Criterion(
        "reap",
        score_reap,
        "mean norm of what an expert adds, router's weight included, over the tokens sent to it",
        "Lasby et al., 2025, https://arxiv.org/abs/2510.13999",
        frozenset({EXPERT_OUTPUT}),
        why_no_experts,
    ),
    Criterion(
        "removal",
        score_removal,
        "error left in what reads the unit once it is gone and the other weights have made up for it",
        "Kurtic et al., 2023 (ZipLM), https://arxiv.org/abs/2302.04089",
        frozenset({REMOVAL}),
        why_no_removal,
    ),
)

_OF_LAYERS = (
    Criterion(
        "block_influence",
        score_block_influence,
        "how far a layer turns what it is given",
        "Men et al., 2024, https://arxiv.org/abs/2403.03853",
        frozenset({BLOCK_INFLUENCE}),
        why_no_layer,
    ),
    Criterion(
        "layer_gate",
        score_layer_gate,
        "derivative of the loss by a gate on what a layer changes",
        "Michel et al., 2019, https://arxiv.org/abs/1905.10650",
        frozenset({LAYER_GATE}),
        why_no_layer,
    ),
    Criterion(
        "bypass_loss",
        score_bypass_loss,
        "measured change of the loss when a layer is left out",
        "Kim et al., 2024, https://arxiv.org/abs/2402.02834",
        frozenset({BYPASS_LOSS}),
        why_no_layer,
    ),
)

CRITERIA: dict[str, Criterion] = {
    criterion.name: criterion for criterion in (*_DATA_FREE, *_OF_GRADIENTS, *_OF_ACTIVATIONS, *_OF_LAYERS)
}
"""Every criterion by name."""
