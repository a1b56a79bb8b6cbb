"""The labels of every tensor of a graph, by node and by parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from prunekit.graph.atoms import Atoms, Dim, Dims
from prunekit.graph.constants import Constants, Lookup


@dataclass
class Labels:
    """The labels of every tensor of a graph.

    Attributes:
        atoms: every fact stated about them.
        dims: per node, the labels of its output (a tuple of outputs for operators that give several).
        tensors: per parameter, buffer or constant, its labels.
        inputs: per placeholder of an input that may shrink with the model, its labels; the first dimension,
            the batch, has none.
        origins: per node, the operators with weights whose outputs it is made of without another in between.
        pointers: per node (and output, where there are several), the dimension that its values point into:
            which experts a router chose.
        tallies: nodes that count how often each index of their one dimension was pointed to.
        constants: what follows from integers that the model holds.
        lookups: operators that look up indices at constant positions.
    """

    atoms: Atoms
    constants: Constants
    dims: dict[Node, Any] = field(default_factory=dict)
    tensors: dict[str, Dims] = field(default_factory=dict)
    inputs: dict[str, Dims] = field(default_factory=dict)
    origins: dict[Node, frozenset[Node]] = field(default_factory=dict)
    pointers: dict[Node | tuple[Node, int], Dim] = field(default_factory=dict)
    tallies: set[Node] = field(default_factory=set)
    lookups: list[Lookup] = field(default_factory=list)


def outputs_of(labels: Labels, node: Node) -> list[Dims]:
    """The labels of a node's output tensors, as a flat list."""
    return list(flat_dims(labels.dims.get(node)))


def flat_dims(outcome: object) -> Iterator[Dims]:
    """Every tensor's labels in what a node was given: one tensor's, or a tuple of them."""
    if not isinstance(outcome, tuple):
        return
    if any(isinstance(item, tuple) or item is None for item in outcome):
        for item in outcome:
            yield from flat_dims(item)
    else:
        yield outcome
