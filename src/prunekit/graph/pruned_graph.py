"""The pruned graph as a module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule


class PrunedGraph(GraphModule):
    """The pruned graph as a module: original parameter names, the model's own inputs and outputs.

    ``train()`` reaches batch normalisation and dropout.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> PrunedGraph:
        twin = as_module(
            copied(self.graph),
            lambda name: copy.deepcopy(attribute(self, name), memo),
            saved=self.state_dict().keys(),
        )
        return twin.train(self.training)


def as_module(
    graph: torch.fx.Graph, value_of: Callable[[str], Any], *, saved: Collection[str]
) -> PrunedGraph:
    """A module that runs ``graph``.

    Args:
        graph: is taken, not copied.
        value_of: gives the parameter, buffer or constant of a name that the graph reads.
        saved: the buffers that belong into the state dict; the others are left out of it.
    """
    root = _Root()
    for node in graph.nodes:
        if node.op == "get_attr" and node.target != "training":
            _attach(root, node.target, value_of(node.target))
    module = PrunedGraph(root, graph, class_name="PrunedGraph")
    for name in dict(module.named_buffers()).keys() - set(saved):
        path, _, leaf = name.rpartition(".")
        module.get_submodule(path)._non_persistent_buffers_set.add(leaf)
    return module


def copied(graph: torch.fx.Graph) -> torch.fx.Graph:
    """The same nodes under the same names, and the same nesting of inputs and outputs."""
    twin = torch.fx.Graph()
    twin.output(twin.graph_copy(graph, {}))
    twin.set_codegen(graph._codegen)  # It says how inputs and outputs are nested, and never changes.
    return twin


def attribute(module: torch.nn.Module, path: str) -> Any:
    """What a dotted path names."""
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name)
    return found


class _Root(torch.nn.Module):
    """Holds the tensors that the graph reads, under their original names."""


def _attach(root: torch.nn.Module, path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for name in parents:
        if not hasattr(root, name):
            root.add_module(name, torch.nn.Module())
        root = getattr(root, name)
    if isinstance(value, torch.nn.Parameter):
        root.register_parameter(leaf, value)
    elif isinstance(value, Tensor):
        root.register_buffer(leaf, value)
    else:
        setattr(root, leaf, value)
