"""Positions that a model holds as constants: which indices of a dimension it looks up, and which are left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from prunekit.types import BoolArray, IntArray

if TYPE_CHECKING:
    from prunekit.graph.trace import Graph

MOST_ELEMENTS = 1 << 20
"""Larger constants are not evaluated."""

_SAME = frozenset(
    ("lift_fresh", "lift_fresh_copy", "detach", "detach_", "alias", "clone", "contiguous", "to", "_to_copy")
)
"""Operators that give the values they are given."""

_MOVED = frozenset(("expand", "broadcast_to", "unsqueeze", "view", "reshape"))
"""Operators that give the values of a vector in their order, perhaps repeated along other dimensions."""

_READERS = frozenset(("index", "index_select", "gather", "take_along_dim"))

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
class Lookup:
    """One operator that looks up indices of a labelled dimension at constant positions.

    Attributes:
        node: the operator.
        axis: the dimension of its first input.
        tensor: the buffer or constant whose values are the positions and that nothing else reads, so that it
            can change with them; None where they are computed.
        positions: ``[m]`` the indices looked up, from 0 on.
        into: ``[n]`` labels of the dimension.
        sources: buffers and constants that the positions were computed from, as they were, by name.
    """

    node: Node
    axis: int
    tensor: str | None
    positions: IntArray
    into: IntArray
    sources: Mapping[str, Tensor]


def renumbered(positions: IntArray, kept: BoolArray) -> IntArray:
    """``[left]``: the positions that still exist, counted among what is left.

    ``new = rank of old among the kept, for every old position that is kept``, in their order.

    Args:
        positions: ``[m]``, each in ``[0, n)``.
        kept: ``[n]`` which indices of the dimension stay.
    """
    return (np.cumsum(kept) - 1)[positions[kept[positions]]]


class Constants:
    """Evaluates what a graph computes from integer buffers, constants and ranges alone."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._order = {node: place for place, node in enumerate(graph.nodes)}
        self._held = {
            node: graph.tied.get(name, name)
            for node in graph.nodes
            if node.op == "placeholder" and (name := graph.tensors.get(node.name)) is not None
        }
        self._written = self._nodes_written()
        self._values: dict[Node, Tensor | None] = {}

    def positions(self, node: Node, axis: int, size: int) -> IntArray | None:
        """``[m]`` the positions in a dimension of ``size`` that ``node`` names; None where data decides it.

        Its values lie along ``axis`` and are the same along all other dimensions.
        """
        rank = node.meta["val"].ndim
        while _name(node) in ("expand", "broadcast_to") and isinstance(node.args[0], Node):
            node = node.args[0]
        value = self._value(node)
        if value is None or value.numel() == 0 or value.dtype not in _INTEGERS:
            return None
        if value.numel() != (value.shape[axis - rank] if axis - rank >= -value.ndim else 1):
            return None
        found = value.reshape(-1).cpu().numpy().astype(np.int64)
        return np.where(found < 0, found + size, found) if (np.abs(found + 0.5) < size).all() else None

    def holder(self, node: Node, *, moved: bool = False) -> str | None:
        """The vector whose values are ``node``'s and that serves nothing but lookups.

        Args:
            node: a tensor of positions.
            moved: it may have other dimensions of which it is the same everywhere.
        """
        while _name(node) in (_SAME | _MOVED if moved else _SAME) and isinstance(node.args[0], Node):
            node = node.args[0]
        name = self._held.get(node)
        if name is None or self._graph.tensor(name).ndim != 1:
            return None
        twins = [twin for twin, held in self._held.items() if held == name]
        return name if all(self._only_looks_up(twin) for twin in twins) else None

    def sources(self, node: Node) -> dict[Node, tuple[str, Tensor]]:
        """The buffers and constants that constant positions are computed from: names and values."""
        return {
            source: (self._held[source], value)
            for source in self._ancestors(node)
            if source.op == "placeholder" and (value := self._value(source)) is not None
        }

    def _only_looks_up(self, node: Node) -> bool:
        for user in node.users:
            name = _name(user)
            if name in _SAME | _MOVED:
                if not self._only_looks_up(user):
                    return False
            elif name not in _READERS or user.args[0] is node:
                return False
        return True

    def _value(self, node: Node) -> Tensor | None:
        if node in self._values:
            return self._values[node]
        chain = sorted(self._ancestors(node), key=self._order.__getitem__)
        if not all(self._is_constant(step) for step in chain):
            self._values[node] = None
            return None
        with torch.no_grad():
            for step in chain:
                if step not in self._values:
                    self._values[step] = self._run(step)
                if self._values[step] is None:
                    break
        return self._values.setdefault(node, None)

    def _run(self, node: Node) -> Tensor | None:
        if node.op == "placeholder":
            found = self._graph.tensor(self._held[node])
            return None if found.is_meta else found.detach().clone()
        given: Any = map_arg((node.args, node.kwargs), lambda source: self._values[source])
        args, kwargs = given
        found = args[0] if _name(node) == "detach_" else node.target(*args, **kwargs)  # pyright: ignore
        return None if found.is_meta else found

    def _ancestors(self, node: Node) -> list[Node]:
        found: dict[Node, None] = {}
        pending = [node]
        while pending:
            step = pending.pop()
            if step not in found:
                found[step] = None
                pending += step.all_input_nodes
        return list(found)

    def _is_constant(self, node: Node) -> bool:
        """Its value follows from integers that the model holds, and nothing writes to it."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or node in self._written:
            return False
        if any(not isinstance(size, int) for size in value.shape) or value.numel() > MOST_ELEMENTS:
            return False
        if node.op == "placeholder":
            return node in self._held and not (value.is_floating_point() or value.is_complex())
        target = node.target
        return (
            isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded not in target.tags
        )

    def _nodes_written(self) -> set[Node]:
        """What operators write to, and what that is a view of."""
        written: set[Node] = set()
        pending = [source for node in self._order for source in _aliased(node, writes=True)]
        while pending:
            node = pending.pop()
            if node not in written:
                written.add(node)
                pending += _aliased(node, writes=False)
        return written


def _aliased(node: Node, *, writes: bool) -> list[Node]:
    """The inputs that an operator writes to, or those that its output may share memory with."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or _name(node) == "detach_":
        return []  # detach_ writes nothing that counts.
    schema = target._schema.arguments
    given = {item.name: value for item, value in zip(schema, node.args, strict=False)} | dict(node.kwargs)
    names = [
        item.name
        for item in schema
        if item.alias_info is not None and (item.alias_info.is_write or not writes)
    ]
    return [source for name in names if isinstance(source := given.get(name), Node)]


def _name(node: Node) -> str:
    """``expand`` for every overload of ``aten.expand``; "" for operators from elsewhere."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return target.overloadpacket.__name__
    return ""
