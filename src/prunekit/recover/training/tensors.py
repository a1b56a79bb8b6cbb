"""The tensors of a model by name, copies of them, and the way back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunekit.errors import TrainingError


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
        TrainingError: one is missing or has another shape than before.
    """
    for name, tensor in source.items():
        target = targets.get(name)
        if target is None or target.shape != tensor.shape:
            raise changed(name, tensor, target)
        strides = target.stride() if target.layout == torch.strided else ()
        for dim, stride in enumerate(strides):
            if stride == 0:  # Expanded: all along this dimension is one place in memory.
                target, tensor = target.narrow(dim, 0, 1), tensor.narrow(dim, 0, 1)
        target.copy_(tensor)


def changed(name: str, was: Tensor | None, now: Tensor | None) -> TrainingError:
    """The error of a tensor that is not what it was; None where there is none."""
    before, after = ("absent" if each is None else f"of shape {list(each.shape)}" for each in (was, now))
    return TrainingError(
        f"it was {before} and is {after}",
        expected="parameters and buffers that keep their names and shapes while the model trains",
        where=f"tensor '{name}'",
        remedy="Run the model once before training if it makes buffers when it is first called, and keep "
        "what grows in an attribute that is no buffer",
    )
