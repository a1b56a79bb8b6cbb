"""The tensors of a model by name, copies of them, and the way back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, the non-persistent buffers too; a tied one once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def copies_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, with memory of their own."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def copy_into(targets: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Give tensors the values of others with the same names.

    Raises:
        KeyError: a target is missing.
        RuntimeError: shapes differ.
    """
    for name, tensor in source.items():
        targets[name].copy_(tensor)
