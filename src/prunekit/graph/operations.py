"""The operators of a graph that take time, as operations at any widths and any batch size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch.fx import Node

from prunekit.graph.atoms import Dim, Fixed
from prunekit.graph.groups import Groups
from prunekit.graph.nodes import bind, depends_on_data, operator_name, static_nodes, tensors_of
from prunekit.graph.rules import FAMILIES
from prunekit.graph.trace import CACHES
from prunekit.measure import contracts, count_macs
from prunekit.measure.operation import Operation, Shape
from prunekit.types import KeepMask

FREE = frozenset(
    f"aten.{name}"
    for name in (
        *("view", "reshape", "_unsafe_view", "view_as", "reshape_as", "ravel", "flatten", "unflatten"),
        *("squeeze", "unsqueeze", "expand", "expand_as", "alias", "detach", "lift_fresh", "contiguous"),
        *("dropout", "feature_dropout", "alpha_dropout", "select", "slice", "narrow", "split", "chunk"),
        *("split_with_sizes", "unbind", "arange", "zeros", "ones", "full", "empty", "scalar_tensor"),
        *("sym_size", "_assert_tensor_metadata", "to", "_to_copy"),
    )
)
"""Operators that compute nothing: they look at the same numbers in another way, or make constants."""

Sized = tuple[tuple[Dim, Any], ...]
"""The dimensions of a tensor, each with the size it has in the trace."""


@dataclass(frozen=True, eq=False)
class Placed:
    """An operator of the graph.

    Attributes:
        node: of the graph.
        kind: of :class:`prunekit.measure.operation.Operation`.
        inputs: for each tensor argument its dimensions, each with the size it has in the trace.
        output: the same of its first result.
        groups: the groups that occur in any of these dimensions.
        settings: of the operation.
        turned: the second argument is a weight whose dimensions are the other way round.
    """

    node: Node
    kind: str
    inputs: tuple[Sized, ...]
    output: Sized
    groups: frozenset[str]
    settings: tuple[tuple[str, Any], ...]
    turned: bool = False


@dataclass(frozen=True, eq=False)
class Cache:
    """A tensor that a call hands to the next one.

    Attributes:
        node: that computes it.
        dims: its dimensions, each with the size it has in the trace.
        groups: that occur in them.
        element_bytes: of one number.
    """

    node: Node
    dims: Sized
    groups: frozenset[str]
    element_bytes: int


class Operations:
    """Every operator of a model that takes time.

    Attributes:
        groups: of the model.
    """

    def __init__(self, groups: Groups) -> None:
        self.groups = groups
        self._graph = groups.graph

    @cached_property
    def placed(self) -> tuple[Placed, ...]:
        """The operators, in the order of the graph; what is computed from weights alone is left out."""
        nodes = self._graph.nodes
        static = static_nodes(nodes, lambda node: node.name in self._graph.tensors)
        found = (self._place(node) for node in nodes if node.op == "call_function" and node not in static)
        return tuple(placed for placed in found if placed is not None)

    def at(self, keep: KeepMask, *, batch: int | None = None) -> tuple[Operation, ...]:
        """The operations that are left when ``keep`` is.

        Args:
            keep: by group name ``[units]`` bool.
            batch: examples in a call, where the graph's batch is open; default as in the trace.
        """
        gone, tied = self.groups.gone(keep), self.groups.tied(keep)
        return tuple(self.operation(placed, tied, batch) for placed in self.placed if placed.node not in gone)

    def operation(self, placed: Placed, keep: KeepMask, batch: int | None) -> Operation:
        """One operator at the widths that ``keep`` leaves, a ``keep`` that is ``Groups.tied``."""
        inputs = [self.sizes(dims, keep, batch) for dims in placed.inputs]
        output = self.sizes(placed.output, keep, batch)
        settings = placed.settings
        if placed.turned:
            inputs[1] = inputs[1][::-1]
        if placed.kind == "convolution":
            settings = (*settings, ("groups", max(1, inputs[0][1] // max(1, inputs[1][1]))))
        if placed.kind in ("contraction", "recurrent"):
            settings = (("macs", _macs(placed.node, inputs, output)),)
        return Operation(placed.kind, tuple(inputs), output, settings)

    def sizes(self, dims: Sized, keep: KeepMask, batch: int | None) -> Shape:
        """The shape of a tensor at the widths that ``keep`` leaves, a ``keep`` that is ``Groups.tied``."""
        return tuple(
            _size_at(traced, batch) if isinstance(dim, Fixed) else self.groups.count(dim, keep)
            for dim, traced in dims
        )

    @property
    def caches(self) -> tuple[Cache, ...]:
        """The tensors that a call hands to the next one."""
        outputs = self._graph.outputs
        given = list(self._graph.nodes[-1].args[0])[-len(outputs) :]  # pyright: ignore
        return tuple(
            Cache(node, self._dims(node), self._named((self._dims(node),)), node.meta["val"].element_size())
            for path, node in zip(outputs, given, strict=True)
            if isinstance(node, Node) and any(fnmatchcase(path, pattern) for pattern in CACHES)
        )

    def _place(self, node: Node) -> Placed | None:
        name, values = operator_name(node), tensors_of(node.meta.get("val"))
        if not values or name in FREE or name not in FAMILIES:
            return None
        sources = [item for item in _flat(node.args) if tensors_of(item.meta.get("val"))]
        if any(depends_on_data(item.meta["val"]) for item in (node, *sources)):
            return None
        inputs = tuple(self._dims(source) for source in sources)
        kind, settings, turned = FAMILIES[name], (), False
        if name.startswith("aten.conv") and "transpose" not in name:
            kind, settings = "convolution", _convolution_settings(bind(node), inputs)
        elif name == "aten.linear":
            kind = "linear"
        elif name == "aten.addmm":
            kind, turned, inputs = "linear", True, (inputs[1], inputs[2], inputs[0])
        elif name in ("aten.matmul", "aten.mm", "aten.bmm") and min(len(dims) for dims in inputs) > 1:
            kind = "product"
        elif name == "aten.scaled_dot_product_attention":
            kind, inputs = "attention", inputs[:3]
        output = self._dims(node)
        return Placed(node, kind, inputs, output, self._named((*inputs, output)), settings, turned)

    def _dims(self, node: Node) -> Sized:
        value = tensors_of(node.meta["val"])[0]
        labels = self.groups.labels_of(node)
        known = labels[0] if labels and len(labels[0]) == value.ndim else None
        sizes = [size if isinstance(size, torch.SymInt) else int(size) for size in value.shape]
        dims = known if known is not None else tuple(_unlabelled(size) for size in sizes)
        return tuple(zip(dims, sizes, strict=True))

    def _named(self, tensors: tuple[Sized, ...]) -> frozenset[str]:
        return frozenset(
            occurrence.group
            for dims in tensors
            for dim, _ in dims
            if not isinstance(dim, Fixed)
            for occurrence in self.groups.occurrences(dim)
        )


def _flat(arguments: Any) -> list[Node]:
    if isinstance(arguments, Node):
        return [arguments]
    if isinstance(arguments, list | tuple):
        return [node for item in arguments for node in _flat(item)]
    return []


def _unlabelled(size: Any) -> Fixed:
    from prunekit.graph.atoms import SINGLE

    return Fixed(int(size.node.hint) if isinstance(size, torch.SymInt) else int(size), SINGLE)


def _size_at(size: Any, batch: int | None) -> int:
    """An open size as it is with so many examples; a closed one as it is."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    if batch is None:
        return int(size.node.hint)
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, batch)))


def _convolution_settings(given: Mapping[str, Any], inputs: tuple[Sized, ...]) -> tuple[tuple[str, Any], ...]:
    rank = len(inputs[1]) - 2

    def each(value: Any) -> tuple[int, ...]:
        values = [value] if isinstance(value, int) else list(value)
        return tuple(values * rank if len(values) == 1 else values)

    stride, dilation, padding = each(given["stride"]), each(given["dilation"]), given["padding"]
    if padding == "same":  # An odd remainder would lie on one side only; that changes no time.
        kernel = [int(size) for _, size in inputs[1][2:]]
        padding = [step * (width - 1) // 2 for step, width in zip(dilation, kernel, strict=True)]
    padding = (0,) * rank if padding == "valid" else each(padding)
    return ("stride", stride), ("padding", padding), ("dilation", dilation)


def _macs(node: Node, inputs: list[Shape], output: Shape) -> int:
    equation = str(bind(node).get("equation", ""))
    counted = (
        count_macs(str(node.target), inputs, output, equation=equation)
        if contracts(str(node.target))
        else None
    )
    return counted if counted is not None else prod(output)
