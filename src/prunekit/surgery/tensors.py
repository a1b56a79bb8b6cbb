"""Reading and replacing a module's tensors by qualified name, whatever kind of attribute they are."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import PlanError
from prunekit.files import content_digest


def copied(model: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        PlanError: the model holds something that cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever an attribute's own __deepcopy__ or __reduce__ raises
        raise PlanError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}",
            expected="a model that copy.deepcopy copies, because the one given is left as it is",
            remedy="Replace tensors with a gradient history among its attributes, such as the weight that "
            "torch.nn.utils.weight_norm leaves; torch.nn.utils.parametrizations.weight_norm leaves none",
        ) from error


def digest_of(tensor: Tensor) -> str:
    """SHA-256 of the values of a tensor, in hexadecimal; its shape and dtype do not count."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return content_digest(values.numpy().data)


def owner(model: nn.Module, name: str) -> tuple[Any, str]:
    """The object that holds ``name`` and the attribute's own name.

    Raises:
        AttributeError: there is no such attribute.
    """
    *path, leaf = name.split(".")
    found: Any = model
    for part in path:
        found = getattr(found, part)
    return found, leaf


def read(model: nn.Module, name: str) -> Tensor | None:
    """The parameter, buffer or plain tensor attribute of that name; None where the model has none."""
    try:
        holder, leaf = owner(model, name)
        value = getattr(holder, leaf)
    except AttributeError:
        return None
    return value if isinstance(value, Tensor) else None


def replace(model: nn.Module, name: str, value: Tensor) -> None:
    """Put ``value`` where ``name`` is; a parameter stays a parameter and keeps ``requires_grad``."""
    holder, leaf = owner(model, name)
    if isinstance(holder, nn.Module) and leaf in holder._parameters:
        old = holder._parameters[leaf]
        trains = old is not None and old.requires_grad
        holder._parameters[leaf] = (
            value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=trains)
        )
    elif isinstance(holder, nn.Module) and leaf in holder._buffers:
        holder._buffers[leaf] = value
    else:
        setattr(holder, leaf, value)


def names_of(model: nn.Module, name: str) -> list[str]:
    """All names of the tensor called ``name``: more than one where it is tied."""
    tensor = read(model, name)
    every = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    return [other for other, value in every if value is tensor] or [name]


def replace_everywhere(target: nn.Module, source: nn.Module, name: str, value: Tensor) -> None:
    """Put one new tensor under every name the old one has."""
    old = read(source, name)
    if old is None:
        return
    if isinstance(old, nn.Parameter):
        value = nn.Parameter(value, requires_grad=old.requires_grad)
    for alias in names_of(source, name):
        replace(target, alias, value)
