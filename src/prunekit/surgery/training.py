"""One step of training on the example inputs: whether a model gets through it, and with whose derivatives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils import _pytree as pytree

from prunekit.graph import Graph
from prunekit.surgery.compare import fresh_inputs
from prunekit.surgery.tensors import copied


def trains(model: nn.Module, graph: Graph) -> bool:
    """A copy of the model gets forward and backward once in training mode.

    Args:
        model: with the inputs of the traced model.
        graph: with the example inputs.
    """
    with torch.enable_grad(), torch.random.fork_rng():
        try:
            values = _differentiable(model, graph)
            if values:
                torch.stack([value.float().sum() for value in values]).sum().backward()
        except Exception:  # whatever the user's forward raises; what matters is whether it does
            return False
    return True


def own_derivatives(model: nn.Module, graph: Graph) -> tuple[str, ...]:
    """The user's ``torch.autograd.Function`` classes that the outputs are differentiated by, in no graph.

    Args:
        model: the dense model.
        graph: with the example inputs.
    """
    with torch.enable_grad(), torch.random.fork_rng():
        try:
            pending = [value.grad_fn for value in _differentiable(model, graph)]
        except Exception:  # it does not run in training mode, so that nothing of it is lost
            return ()
    found, seen = set(), set()
    while pending:
        step = pending.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        pending.extend(before for before, _ in step.next_functions)
        if isinstance(step, BackwardCFunction):
            forward = type(step)._forward_cls  # pyright: ignore
            if not forward.__module__.startswith("torch."):
                found.add(forward.__name__)
    return tuple(sorted(found))


def _differentiable(model: nn.Module, graph: Graph) -> list[Tensor]:
    """The outputs of a copy in training mode that something can be differentiated by."""
    twin = copied(model).train()
    args, kwargs = fresh_inputs(graph)
    leaves = pytree.tree_leaves(twin(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
