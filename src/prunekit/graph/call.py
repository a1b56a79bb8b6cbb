"""One operator's call, as its label rule sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from prunekit.graph.atoms import Dim, Dims, Fixed, Reason
from prunekit.graph.labels import Labels
from prunekit.graph.nodes import bind, concrete, operator_name, sizes, source_line, tensors_of
from prunekit.types import Granularity, IntArray


class Call:
    """One operator's call, as its rule sees it.

    ``call["weight"]`` is an argument by its schema name (nodes for tensors, plain numbers for the rest),
    ``call.dims("weight")`` its labels, and the verbs state facts in the operator's name.
    """

    def __init__(self, node: Node, labels: Labels, static: set[Node]) -> None:
        self.node = node
        self.atoms = labels.atoms
        self.constants = labels.constants
        self.lookups = labels.lookups
        self.operator = operator_name(node)
        self.overload = str(node.target)
        self.refusal = "its labels cannot be followed"
        self._labels = labels
        self._static = static
        self._arguments = bind(node)
        self._groups: IntArray | None = None
        self.followed: set[Node] = set()

    def pointed(self, which: str | Node) -> Dim | None:
        """The dimension that an argument's values point into, if they do; the caller takes care of it."""
        node = self[which] if isinstance(which, str) else which
        found = self._labels.pointers.get(node)
        if found is not None:
            self.followed.add(node)
        return found

    def point(self, dim: Dim, *, output: int | None = None) -> None:
        """The values of (one of) the output(s) point into ``dim``."""
        self._labels.pointers[self.node if output is None else (self.node, output)] = dim

    def is_tally(self, which: str | Node) -> bool:
        """An argument counts how often each index of its dimension was pointed to."""
        return (self[which] if isinstance(which, str) else which) in self._labels.tallies

    def tally(self) -> None:
        """The output counts how often each index of its dimension was pointed to."""
        self._labels.tallies.add(self.node)

    def needs(self, dim: Dim, count: int) -> None:
        """At least ``count`` indices of ``dim`` have to stay."""
        if not isinstance(dim, Fixed):
            self.atoms.least.append((dim, count))

    def __getitem__(self, name: str) -> Any:
        value = self._arguments.get(name)
        if isinstance(value, Node) and not tensors_of(value.meta.get("val")):
            return concrete(value)
        if isinstance(value, tuple | list):
            return [
                concrete(item)
                if isinstance(item, torch.SymInt)
                or (isinstance(item, Node) and not tensors_of(item.meta.get("val")))
                else item
                for item in value
            ]
        return value

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments by schema name, defaults included."""
        return self._arguments

    @property
    def inputs(self) -> list[Node]:
        """The tensors among the arguments, in order; repeated where one is given twice."""
        flat = [
            item
            for value in self._arguments.values()
            for item in (value if isinstance(value, tuple | list) else [value])
        ]
        return [item for item in flat if isinstance(item, Node) and isinstance(item.meta.get("val"), Tensor)]

    @property
    def shape(self) -> tuple[int, ...]:
        """The output's shape."""
        return sizes(self.node.meta["val"])

    def dims(self, which: str | Node) -> Dims:
        """The labels of an argument; empty where it is absent."""
        node = self[which] if isinstance(which, str) else which
        return () if node is None else self._labels.dims[node]

    def is_static(self, which: str | Node) -> bool:
        """The argument is computed from parameters alone."""
        node = self[which] if isinstance(which, str) else which
        return node in self._static

    def origins(self, node: Node) -> frozenset[Node]:
        """The operators with weights whose outputs an argument is made of (see ``Labels``)."""
        return self._labels.origins.get(node, frozenset())

    def fixed(self, size: int, text: str) -> Fixed:
        """A dimension that carries no labels, for the reason ``text``."""
        return Fixed(size, self.reason(text))

    def reason(self, text: str) -> Reason:
        """``text`` with this operator and its source line."""
        return Reason(self.overload, text, source_line(self.node))

    def group_axis(self, count: int) -> IntArray:
        """``[count]`` atoms for the groups this call computes in; the same for all its tensors."""
        if self._groups is None:
            self._groups = self.atoms.fresh(count)
        return self._groups

    def unify(self, left: Dim, right: Dim) -> Dim:
        """The two stand or fall together."""
        return self.atoms.unify(left, right)

    def unify_all(self, dims: Sequence[Dim]) -> Dim:
        """They all stand or fall together."""
        first, *rest = dims
        for dim in rest:
            first = self.unify(first, dim)
        return first

    def freeze(self, dims: Sequence[Dim], text: str, *, obvious: bool = False) -> None:
        """No index of these may go."""
        for dim in dims:
            self.atoms.freeze(dim, replace(self.reason(text), obvious=obvious))

    def reduces(self, across: Dim, others: Sequence[Dim], text: str) -> None:
        """A value is computed over all of ``across``: zeros in it count, and ``others`` meet across it."""
        self.atoms.mark_not_mask_equivalent(across, self.reason(text))
        self.atoms.mark_mixed(across, others)

    def contract(self, left: Dim, right: Dim, *, weight: Dim | None) -> None:
        """Multiply and sum over the two; ``weight`` is the one of the two that is a parameter's."""
        self.unify(left, right)
        if weight is None:
            text = "two activations are multiplied and summed over it"
            for dim in (left, right):
                self.atoms.mark_not_mask_equivalent(dim, self.reason(text))
        elif not isinstance(weight, Fixed):
            self.atoms.consumed.append(weight)

    def produces(self, dim: Dim) -> None:
        """A parameter's dimension along which its operator's outputs lie."""
        if not isinstance(dim, Fixed):
            self.atoms.produced.append(dim)

    def kind(self, granularity: Granularity, dims: Sequence[Dim]) -> None:
        """What one index of these dimensions is, where the operator gives it a meaning."""
        self.atoms.kinds.extend((dim, granularity) for dim in dims if not isinstance(dim, Fixed))


Rule = Callable[[Call], "Dims | tuple[Dims, ...] | None"]
"""Gives the labels of an operator's output(s); None = the operator's tensors are frozen."""
