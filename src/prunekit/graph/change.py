"""One operator's constants in the pruned graph, as the step that rewrites them sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from prunekit.graph.atoms import Dim, Dims, Fixed
from prunekit.graph.constants import Lookup
from prunekit.graph.nodes import bind
from prunekit.types import BoolArray, IntArray, KeepMask


@dataclass(frozen=True)
class Change:
    """One constant that a narrower model needs changed.

    Attributes:
        node: the operator's node in the traced graph.
        argument: its name in the operator's schema.
        old: its value in the dense model.
        new: its value in the pruned one.
    """

    node: Node
    argument: str
    old: Any
    new: Any


class Labelled(Protocol):
    """A traced model whose dimensions carry labels, and what a choice of units leaves of them."""

    @property
    def lookups(self) -> Sequence[Lookup]:
        """The operators that look up indices of a labelled dimension at constant positions."""
        ...

    def labels_of(self, node: Node) -> list[Dims]:
        """The labels of a node's output tensors."""
        ...

    def count(self, dim: Dim, keep: KeepMask) -> int:
        """How many indices of a dimension are left."""
        ...

    def kept(self, dim: IntArray, keep: KeepMask) -> BoolArray:
        """``[n]`` which indices of a labelled dimension are left."""
        ...


class Rewriting:
    """One operator: its labels, what stays of them, and its constants to set.

    Attributes:
        source: its node in the traced graph.
        node: its node in the pruned graph.
        arguments: those of ``source`` by schema name, defaults included.
        changes: made so far.
        held: new constants by name.
    """

    def __init__(self, model: Labelled, keep: KeepMask, source: Node, node: Node) -> None:
        self.source = source
        self.node = node
        self.arguments = bind(source)
        self.changes: list[Change] = []
        self.held: dict[str, Tensor] = {}
        self._model = model
        self._keep = keep

    def dims(self, which: str) -> Dims:
        """The labels of a tensor argument."""
        return self._model.labels_of(self.arguments[which])[0]

    def out(self) -> Dims:
        """The labels of the (first) output."""
        return self.outs()[0]

    def outs(self) -> list[Dims]:
        """The labels of every output."""
        return self._model.labels_of(self.source)

    def lookup(self) -> Lookup | None:
        """What the operator looks up at constant positions, if it does."""
        return next((found for found in self._model.lookups if found.node is self.source), None)

    def hold(self, value: Tensor) -> Node:
        """A node of the new graph that gives ``value``, which its module will hold."""
        name = f"{self.source.name}_positions"
        self.held[name] = value
        with self.node.graph.inserting_before(self.node):
            return self.node.graph.create_node("get_attr", name)

    def count(self, dim: Dim) -> int:
        """How many indices are left."""
        return self._model.count(dim, self._keep)

    def kept(self, dim: Dim) -> BoolArray:
        """``[n]`` which indices are left."""
        if isinstance(dim, Fixed):
            return np.ones(dim.size, dtype=np.bool_)
        return self._model.kept(dim, self._keep)

    def blocks(self, dim: Dim, before: int) -> int:
        """How many of the ``before`` equal blocks of a dimension still have an index."""
        return 1 if before == 1 else int(self.kept(dim).reshape(before, -1).any(axis=1).sum())

    def note(self, what: str, old: int, new: int) -> None:
        """Say that a number changes which is no argument of the operator."""
        if old != new:
            self.changes.append(Change(self.source, what, old, new))

    def set(self, argument: str, value: Any) -> None:
        """Set a constant of the operator, if that changes it."""
        old = self.arguments.get(argument)
        if old != value:
            self.changes.append(Change(self.source, argument, old, value))
            # What the graph holds as nodes (open sizes) stays as it is in the copied graph.
            _set(self.node, argument, _translate(value, self.node.graph))

    def follow_mode(self, argument: str) -> None:
        """Read the module's own ``training`` flag instead of a constant."""
        with self.node.graph.inserting_before(self.node):
            flag = self.node.graph.create_node("get_attr", "training")
        _set(self.node, argument, flag)


Step = Callable[[Rewriting], None]
"""Recomputes the constants of one operator from what is left of its labels."""


def _set(node: Node, argument: str, value: Any) -> None:
    schema = node.target._schema.arguments  # pyright: ignore
    position = [item.name for item in schema].index(argument)
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(argument, value)


def _translate(value: Any, graph: torch.fx.Graph) -> Any:
    if isinstance(value, Node):
        return next(node for node in graph.nodes if node.name == value.name)
    return [_translate(item, graph) for item in value] if isinstance(value, list | tuple) else value
