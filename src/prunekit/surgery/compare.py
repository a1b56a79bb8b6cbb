"""Running two models on the same inputs and saying how far apart they are."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.graph import Graph


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; modes and the random state as found afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        for module, training in modes:
            module.training = training


def outputs(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    """The floating-point tensors among the outputs, in evaluation mode, from copies of the inputs."""
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs)
    )
    with evaluating(model):
        leaves = pytree.tree_leaves(model(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def max_relative_error(reference: list[Tensor], other: list[Tensor]) -> float:
    """Largest difference over the reference's largest magnitude, over all outputs; inf where shapes differ.

    ``max_t max_i |a_ti - b_ti| / max(max_i |a_ti|, tiny)``; 0 where both are equal, NaN counts as inf.
    """
    if [tensor.shape for tensor in reference] != [tensor.shape for tensor in other]:
        return float("inf")
    worst = 0.0
    for left, right in zip(reference, other, strict=True):
        if left.numel() == 0:
            continue
        scale = max(float(left.abs().max()), torch.finfo(left.dtype).tiny)
        error = float((left - right).abs().max()) / scale
        worst = max(worst, error if error == error else float("inf"))
    return worst


def in_float64(model: nn.Module) -> nn.Module:
    """A copy in double precision, in evaluation mode; plain tensor attributes included."""
    twin = copy.deepcopy(model).double().eval()
    for module in twin.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(module, name, value.double())
    return twin


def input_batches(graph: Graph, *, double: bool) -> list[tuple[tuple, dict[str, Any]]]:
    """The example inputs and, where the batch is open, the same with one example more."""
    inputs = (graph.args, graph.kwargs)
    batches = [inputs]
    if graph.batch_is_open:
        leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
        size = leaves[0].shape[0]
        batches.append(
            pytree.tree_map(
                lambda leaf: (
                    torch.cat([leaf, leaf[:1]])
                    if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == size
                    else leaf
                ),
                inputs,
            )
        )
    if not double:
        return batches
    return [
        pytree.tree_map(
            lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf,
            batch,
        )
        for batch in batches
    ]
