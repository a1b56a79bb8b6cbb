"""Attention that divides by the root of its width: what the weights take over when the width shrinks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.graph import Groups
from prunekit.surgery.narrow import narrow
from prunekit.surgery.tensors import read, replace_everywhere
from prunekit.types import Granularity, Group, KeepMask


def attention_scales(groups: Groups, keep: KeepMask) -> dict[str, Tensor]:
    """Factors for the narrowed query and key weights of a class that computes ``1 / sqrt(width)`` itself.

    A pruned graph keeps the dense model's scale. A class that derives it from the narrower width is right
    with scores ``(f q) . (f k) / sqrt(new) = q . k / sqrt(old)``, that is ``f = (new / old) ** (1 / 4)`` in
    the weights and biases of queries and keys alike.

    Args:
        groups: of the dense model.
        keep: by group name, ``[units]`` bool.

    Returns:
        By the name of a parameter, a float64 tensor of its narrowed shape.
    """
    found: dict[str, np.ndarray] = {}
    for name, mask in keep.items():
        group = groups.whole(name)
        if group.granularity is not Granularity.HEAD_DIM or group.mask_equivalent:
            continue
        factor = (mask.reshape(group.blocks, -1).sum(axis=1).max() / group.units_per_block) ** 0.25
        _multiply(groups, group, factor, found)
    return {name: narrow(groups, name, torch.from_numpy(factors), keep) for name, factors in found.items()}


def _multiply(groups: Groups, group: Group, factor: float, found: dict[str, np.ndarray]) -> None:
    for part in group.slices:
        if part.role == "consumer" or part.tensor not in groups.graph.trainable:
            continue
        factors = found.setdefault(part.tensor, np.ones(groups.tensor_shape(part.tensor)))
        along = np.where(part.units >= 0, factor, 1.0)
        factors *= along.reshape([-1 if axis == part.dim else 1 for axis in range(factors.ndim)])


def scale(model: nn.Module, factors: Mapping[str, Tensor], *, power: int = 1) -> None:
    """Multiply parameters by their factors; ``power=-1`` undoes it."""
    for name, factor in factors.items():
        tensor = read(model, name)
        assert tensor is not None
        scaled = tensor.detach().double() * factor.to(tensor.device) ** power
        replace_everywhere(model, model, name, scaled.to(tensor.dtype))
