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
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            yield
    finally:
        for module, training in modes:
            module.training = training


def outputs(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among the outputs, in evaluation mode, from copies of the inputs."""
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, (args, kwargs)
    )
    with evaluating(model):
        leaves = pytree.tree_leaves(model(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def max_relative_error(reference: list[Tensor], other: list[Tensor]) -> float:
    """Largest difference over the reference's largest magnitude, over all outputs; inf where shapes differ.

    ``max_t max_i |a_ti - b_ti| / max(max_i |a_ti|, tiny)``; 0 where both are equal, NaN counts as inf.
    Integer and boolean outputs have to be equal.
    """
    if [tensor.shape for tensor in reference] != [tensor.shape for tensor in other]:
        return float("inf")
    worst = 0.0
    for left, right in zip(reference, other, strict=True):
        if left.numel() == 0:
            continue
        if not left.is_floating_point() and not left.is_complex():
            worst = max(worst, 0.0 if torch.equal(left, right) else float("inf"))
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


def input_batches(graph: Graph) -> list[tuple[tuple, dict[str, Any]]]:
    """The example inputs in double precision and, where the batch is open, with one example more."""
    leaves, spec = pytree.tree_flatten((graph.args, graph.kwargs))
    leaves = [
        leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf for leaf in leaves
    ]
    batches = [pytree.tree_unflatten(leaves, spec)]
    if graph.batch_is_open:
        longer = [
            torch.cat([leaf, leaf[:1]]) if grows else leaf
            for leaf, grows in zip(leaves, graph.open_inputs, strict=True)
        ]
        batches.append(pytree.tree_unflatten(longer, spec))
    return batches
