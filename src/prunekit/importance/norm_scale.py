"""Criteria that look at the scales of normalisation layers."""

from __future__ import annotations

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from prunekit.importance.gather import gather, has_unit
from prunekit.importance.view import GroupView, Rows
from prunekit.ranks import whole
from prunekit.types import Slice


def score_bn_scale(view: GroupView) -> Rows:
    """Score each unit by the magnitude of the scale that batch normalisation gives it.

    ``score[u] = |gamma[u]|``, one row per batch norm of the group

    The scales say most in a network that was trained with an L1 penalty on them, as in the paper. They are
    read whatever the roles are. Batch and instance normalisation count, with or without running statistics;
    the scales of layer, RMS and group normalisation do not, because there units share one variance, so that
    their scales do not stand for the sizes of their outputs.

    Returns:
        ``[norms, units]`` float64, >= 0, without a unit of measure; higher = keep.

    Raises:
        CalibrationError: a scale holds NaN or infinity.

    Source: Liu et al., 2017, Learning Efficient Convolutional Networks through Network Slimming, section 3
    (the scaling factors of eq. 1 are the importance), https://arxiv.org/abs/1708.06519.
    Deviation: a group with several norms has several scales per unit, joined by the reduction.
    """
    rows = []
    for part in _scales(view):
        values = gather(
            view.checked(part.tensor, whole(view.parameters[part.tensor].detach())), part, view.group
        )
        magnitude = values.abs().mean(dim=1).cpu().numpy()
        rows.append(np.where(has_unit(part, view.group), magnitude, np.nan))
    return np.stack(rows)


def why_no_bn_scale(view: GroupView) -> str:
    """Say why a group has no such scale, or ""."""
    if reason := view.why_no_common_slice():
        return reason
    return "" if _scales(view) else "no batch normalisation with a scale runs along it"


def _scales(view: GroupView) -> list[Slice]:
    found = []
    for part in view.group.slices:
        path, _, leaf = part.tensor.rpartition(".")
        owner = view.tensors.modules.get(path)
        if leaf == "weight" and isinstance(owner, _NormBase) and isinstance(owner.weight, nn.Parameter):
            found.append(part)
    return found
