"""Running a whole graph with the results of some of its parts thrown away."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.utils import _pytree as pytree

from prunekit.graph import Groups
from prunekit.types import KeepMask


def run_around(
    dense: nn.Module, groups: Groups, keep: KeepMask, args: tuple, kwargs: dict[str, Any]
) -> list[Tensor]:
    """The outputs when every layer runs, but what it was given goes on in place of what it gives.

    Args:
        dense: the graph that ``groups`` was found in, as a module.
        groups: of the dense model.
        keep: by group name, ``[units]`` bool; of layers and branches.
        args: positional inputs.
        kwargs: keyword inputs.

    Returns:
        The tensors among the outputs that are not released.
    """
    assert isinstance(dense, GraphModule)
    instead = {part.exit.name: part.entry.name for part in groups.bypassed(keep)}
    given = [
        leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in pytree.tree_leaves((args, kwargs))
    ]
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        leaves = _Around(dense, instead).run(*given, enable_io_processing=False)
    released = groups.graph.released
    return [leaf for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and place not in released]


class _Around(Interpreter):
    """Runs every node, and takes the value of one for that of another where it is told to."""

    def __init__(self, module: GraphModule, instead: dict[str, str]) -> None:
        super().__init__(module)
        self._instead = instead
        self._given: dict[str, Any] = {}

    def run_node(self, n: Node) -> Any:
        """The node's value, or that of the node that stands in for it, from before anything wrote to it."""
        value = super().run_node(n)
        if n.name in self._instead:
            value = self._given[self._instead[n.name]]
        if n.name in self._instead.values():
            self._given[n.name] = value.clone()
        return value
