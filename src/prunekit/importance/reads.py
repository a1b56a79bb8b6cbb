"""Where in the traced graph units are read: operators that multiply an activation with a weight and sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.fx import Node

from prunekit.graph import Graph, Groups
from prunekit.graph.nodes import bind, operator_name, sizes, static_nodes
from prunekit.measure.macs import einsum_terms
from prunekit.types import IntArray


@dataclass(frozen=True, eq=False)
class Read:
    """One operator that reads an activation with a weight.

    Attributes:
        node: the operator.
        source: the activation it reads.
        index: the dimensions of the activation that its weight has too; the others are observations.
        weight: the weight, a parameter or computed from parameters alone.
        arrange: brings the weight's value to ``[*sizes of index, rest]``.
        ends: where the rows of the activation are sorted by expert, the node that says where each expert's
            rows end; experts then come before ``index`` in what ``arrange`` gives.
    """

    node: Node
    source: Node
    index: tuple[int, ...]
    weight: Node
    arrange: Callable[[Tensor], Tensor]
    ends: Node | None = None


@dataclass(frozen=True, eq=False)
class Point:
    """Where the units of some groups are observed.

    Attributes:
        observed: the activation.
        after: the node after which it is there.
        index: the dimensions of it that are told apart.
        read: the operator that reads it there; None where the units are observed as they are produced.
        where: the parameter behind the operator's weight.
        units: by group name ``[n]`` int64, the unit of each index, -1 = none.
    """

    observed: Node
    after: Node
    index: tuple[int, ...]
    read: Read | None
    where: str
    units: dict[str, IntArray]


def points_of(groups: Groups) -> list[Point]:
    """Every place where units of the prunable groups are observed.

    1. At the inputs of the operators that read them with a weight, wherever the group lies along a dimension
       that activation and weight share.
    2. A group that nothing reads so is observed at the outputs of the operators that produce it.
    """
    static = static_nodes(groups.graph.nodes, lambda node: node.name in groups.graph.tensors)
    reads = [read for node in groups.graph.nodes for read in _reads(node, static)]
    names = [group.name for group in groups]
    points: list[Point] = []
    for read in reads:
        dims = [groups.labels_of(read.source)[0][dim] for dim in read.index]
        if read.ends is not None:
            dims.insert(0, groups.labels_of(read.weight)[0][0])
        units = {name: at.ravel() for name in names if (at := groups.units_at(name, dims)) is not None}
        if units:
            where = _tensor_behind(groups.graph, read.weight)
            points.append(Point(read.source, read.node, read.index, read, where, units))
    unread = [name for name in names if not any(name in point.units for point in points)]
    for read in reads if unread else ():
        labels = groups.labels_of(read.node)[0]
        dims = [place for place, dim in enumerate(labels) if isinstance(dim, np.ndarray)]
        given = [labels[place] for place in dims]
        units = {name: at.ravel() for name in unread if (at := groups.units_at(name, given)) is not None}
        if units:
            where = _tensor_behind(groups.graph, read.weight)
            points.append(Point(read.node, read.node, tuple(dims), None, where, units))
    return points


def _tensor_behind(graph: Graph, node: Node) -> str:
    """The name of the first tensor that a static node is computed from."""
    while node.op != "placeholder":
        node = node.all_input_nodes[0]
    return graph.tensors[node.name]


def _reads(node: Node, static: set[Node]) -> Iterator[Read]:
    """What an operator reads with a weight; nothing where it has none or is not known here."""
    if node.op != "call_function" or node in static:
        return
    build = _READS.get(operator_name(node))
    read = None if build is None else build(node, static)
    if read is not None:
        yield read


def _linear(node: Node, static: set[Node]) -> Read | None:
    given = bind(node)
    source, weight = given["input"], given["weight"]
    if weight not in static or source in static:
        return None
    return Read(node, source, (_dims(source) - 1,), weight, lambda value: value.movedim(1, 0).flatten(1))


def _convolution(node: Node, static: set[Node]) -> Read | None:
    given = bind(node)
    source, weight, blocks = given["input"], given["weight"], given["groups"]
    if weight not in static or source in static:
        return None

    def arrange(value: Tensor) -> Tensor:
        """``[out, in / groups, *kernel]`` to ``[in, rest]``."""
        out, inside = value.shape[:2]
        split = value.reshape(blocks, out // blocks, inside, -1)
        return split.transpose(1, 2).flatten(2).flatten(0, 1)

    return Read(node, source, (_dims(source) - _dims(weight) + 1,), weight, arrange)


def _transposed_convolution(node: Node, static: set[Node]) -> Read | None:
    given = bind(node)
    source, weight = given["input"], given["weight"]
    if weight not in static or source in static:
        return None
    return Read(node, source, (_dims(source) - _dims(weight) + 1,), weight, lambda value: value.flatten(1))


def _product(node: Node, static: set[Node]) -> Read | None:
    """``left @ right``, one of them a weight; leading dimensions of the weight are told apart."""
    left, right = [item for item in node.args if isinstance(item, Node)][-2:]
    if (left in static) == (right in static):
        return None
    on_right = right in static
    source, weight = (left, right) if on_right else (right, left)
    lead = max(_dims(weight) - 2, 0)
    matrix = _dims(source) - (2 if _dims(source) > 1 else 1)
    inner = _dims(source) - 1 if on_right or _dims(source) == 1 else _dims(source) - 2
    if lead > matrix:
        return None
    beside = tuple(range(matrix - lead, matrix))
    if [sizes(source.meta["val"])[dim] for dim in beside] != list(sizes(weight.meta["val"])[:lead]):
        return None  # a weight that is repeated along an activation's dimension

    def arrange(value: Tensor) -> Tensor:
        if value.ndim == 1:
            return value[:, None]
        return value if on_right else value.transpose(-2, -1)

    return Read(node, source, (*beside, inner), weight, arrange)


def _einsum(node: Node, static: set[Node]) -> Read | None:
    given = bind(node)
    nodes = list(given["tensors"])
    if len(nodes) != 2 or (nodes[0] in static) == (nodes[1] in static):
        return None
    terms, output = einsum_terms(given["equation"], [_dims(item) for item in nodes])
    at = 0 if nodes[0] in static else 1
    own, other = terms[at], terms[1 - at]
    shared = [name for name in other if name in own]
    if all(name in output for name in shared) or len(set(own)) < len(own):
        return None
    order = [own.index(name) for name in shared] + [
        place for place, name in enumerate(own) if name not in shared
    ]
    index = tuple(other.index(name) for name in shared)
    return Read(
        node,
        nodes[1 - at],
        index,
        nodes[at],
        lambda value: (
            value.permute(order).flatten(len(shared)) if len(order) > len(shared) else value[..., None]
        ),
    )


def _grouped_product(node: Node, static: set[Node]) -> Read | None:
    """``x[rows of expert g, k] @ w[g, k, m]``."""
    source, weight, ends = node.args[:3]
    if not (isinstance(source, Node) and isinstance(weight, Node) and isinstance(ends, Node)):
        return None
    return Read(node, source, (1,), weight, lambda value: value, ends) if weight in static else None


def _dims(node: Node) -> int:
    return node.meta["val"].ndim


_READS: dict[str, Callable[[Node, set[Node]], Read | None]] = {
    "aten.linear": _linear,
    "aten.conv1d": _convolution,
    "aten.conv2d": _convolution,
    "aten.conv3d": _convolution,
    "aten.conv_transpose1d": _transposed_convolution,
    "aten.conv_transpose2d": _transposed_convolution,
    "aten.conv_transpose3d": _transposed_convolution,
    "aten.matmul": _product,
    "aten.mm": _product,
    "aten.bmm": _product,
    "aten.mv": _product,
    "aten.addmm": _product,
    "aten.baddbmm": _product,
    "aten.einsum": _einsum,
    "transformers.grouped_mm_fallback": _grouped_product,
}
