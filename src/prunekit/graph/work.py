"""How much the operators of a graph multiply, at any widths."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cached_property

import torch
from torch import Tensor
from torch.fx import Node

from prunekit.graph.nodes import bind, depends_on_data, operator_name, sizes, tensors_of
from prunekit.graph.rules import OPERATORS
from prunekit.graph.trace import Graph
from prunekit.measure import contracts, count_macs


class Work:
    """The operators of one graph that contract something."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def macs(self, shape_of: Callable[[Node], tuple[int, ...]], gone: Collection[Node]) -> int:
        """Multiply-accumulates for one example.

        Args:
            shape_of: the shape of a node's first tensor.
            gone: nodes that are not computed.
        """
        total = 0
        for node, sources in self._multiplying:
            if node not in gone:
                shapes = [None if source is None else shape_of(source) for source in sources]
                total += _count(node, shapes, shape_of(node)) or 0
        return total // self._graph.batch_size

    @cached_property
    def uncounted(self) -> tuple[str, ...]:
        """Operators that count for nothing: without a rule, or of sizes that depend on data."""
        known = {node for node, _ in self._multiplying}
        unknown = {
            operator_name(node)
            for node in self._graph.nodes
            if node.op == "call_function"
            and tensors_of(node.meta.get("val"))
            and node not in known
            and (not _is_cheap(node) or contracts(str(node.target)))
        }
        return tuple(sorted(unknown - {"getitem"}))

    @cached_property
    def _multiplying(self) -> list[tuple[Node, list[Node | None]]]:
        """Operators that contract something, with their tensor arguments."""
        found = []
        for node in self._graph.nodes:
            if node.op == "call_function" and tensors_of(node.meta.get("val")):
                sources = _tensor_arguments(node)
                if any(depends_on_data(item.meta["val"]) for item in (node, *sources) if item is not None):
                    continue  # How much it computes is not known before the data is.
                shapes = [sizes(source.meta["val"]) if source else None for source in sources]
                if _count(node, shapes, sizes(tensors_of(node.meta["val"])[0])) is not None:
                    found.append((node, sources))
        return found


def _tensor_arguments(node: Node) -> list[Node | None]:
    """Tensor arguments in order, lists of them one after another; None where an optional one is absent."""
    flat = [item for value in node.args for item in (value if isinstance(value, list | tuple) else [value])]
    return [
        item if isinstance(item, Node) else None
        for item in flat
        if item is None or (isinstance(item, Node) and isinstance(item.meta.get("val"), Tensor))
    ]


def _is_cheap(node: Node) -> bool:
    """A single operator with a rule; a region of lower precision holds operators of its own."""
    return operator_name(node) in OPERATORS and isinstance(node.target, torch._ops.OpOverload)


def _count(node: Node, shapes: list[tuple[int, ...] | None], output: tuple[int, ...]) -> int | None:
    equation = str(bind(node).get("equation", ""))
    return count_macs(str(node.target), shapes, output, equation=equation)
