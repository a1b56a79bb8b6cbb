"""What goes into a model and comes out of it, as flat, named tensors: runtimes know nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword inputs of one call."""


def input_tensors(inputs: Inputs) -> dict[str, Tensor]:
    """Every tensor among the inputs by its address, such as ``[0][1]`` or ``[1]['mask']``, in pytree order.

    The address holds whatever the order in which keyword inputs are given.
    """
    args, kwargs = inputs
    leaves, _ = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))
    return {pytree.keystr(path): leaf for path, leaf in leaves if isinstance(leaf, Tensor)}


def input_names(model: nn.Module, inputs: Inputs) -> list[str]:
    """A readable name for every tensor of :func:`input_tensors`: the parameter of ``forward``, then keys.

    A tensor given as ``batch={"ids": [a, b]}`` is called ``batch_ids_0`` and ``batch_ids_1``.
    """
    args, kwargs = inputs
    leaves, _ = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))
    positional = _positional_names(model, len(args))
    words = []
    for path, leaf in leaves:
        if isinstance(leaf, Tensor):
            first, *rest = (_word(key) for key in path[1:])
            words.append([positional[int(first)] if _word(path[0]) == "0" else first, *rest])
    return unique_names("_".join(parts) for parts in words)


def output_tensors(outputs: Any) -> dict[str, Tensor]:
    """Every tensor among the outputs by name; what is not a tensor is left out.

    A lone tensor is ``output``; the tensors of a tuple are ``output_0``, ``output_1``; those of a mapping,
    of a ``ModelOutput`` or of any other dataclass have its keys.
    """
    found = list(_output_leaves(outputs, ()))
    names = unique_names(
        "_".join(("output", *words) if not words or words[0].isdigit() else words) for words, _ in found
    )
    return dict(zip(names, (leaf for _, leaf in found), strict=True))


def batch_size(inputs: Inputs) -> int | None:
    """The first dimension of the first input tensor that has one; None where no tensor has any."""
    sizes = (len(tensor) for tensor in input_tensors(inputs).values() if tensor.ndim > 0)
    return next(sizes, None)


def has_batch(value: Any, size: int | None) -> bool:
    """Whether an input lies along the batch: a tensor whose first dimension is the batch size."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == size


def one_example(inputs: Inputs) -> Inputs:
    """The first example alone, as a batch of one."""
    size = batch_size(inputs)
    return pytree.tree_map(lambda value: value[:1] if has_batch(value, size) else value, inputs)


def doubled(inputs: Inputs) -> Inputs:
    """Every example twice."""
    size = batch_size(inputs)
    return pytree.tree_map(
        lambda value: torch.cat([value, value]) if has_batch(value, size) else value, inputs
    )


def on_device(inputs: Inputs, device: torch.device) -> Inputs:
    """The same inputs on ``device``."""
    return pytree.tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, inputs)


def copies(inputs: Inputs) -> Inputs:
    """The same inputs, tensors and what holds them, which a model may write to."""
    return pytree.tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)


def _output_leaves(value: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    try:
        leaves, _ = pytree.tree_flatten_with_path(value)
        named = [(tuple(_word(key) for key in path), leaf) for path, leaf in leaves]
    except ValueError:  # A registered type that does not say what its parts are called.
        named = [((str(place),), leaf) for place, leaf in enumerate(pytree.tree_leaves(value))]
    for path, leaf in named:
        if isinstance(leaf, Tensor):
            yield words + path, leaf
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            parts = {field.name: getattr(leaf, field.name) for field in fields(leaf)}
            yield from _output_leaves(parts, words + path)


def _positional_names(model: nn.Module, count: int) -> list[str]:
    """What ``forward`` calls its first ``count`` positional inputs."""
    names: list[str] = []
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{name}_{place}" for place in range(count - len(names))]
        elif parameter.kind in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            names.append(name)
    return names


def _word(key: Any) -> str:
    """The part of a pytree path that a person would call it by: an index, a key, an attribute's name."""
    for attribute in ("idx", "key", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def unique_names(names: Iterable[str]) -> list[str]:
    """The names, each later namesake with a number."""
    unique: dict[str, None] = {}
    for name in names:
        candidate, number = name, 1
        while candidate in unique:
            candidate, number = f"{name}_{number}", number + 1
        unique[candidate] = None
    return list(unique)
