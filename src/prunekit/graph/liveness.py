"""What of a graph is still computed when parts of it are left out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from torch.fx import Node

from prunekit.graph.trace import Graph


@dataclass(frozen=True, eq=False)
class Bypass:
    """A part ``exit = entry + f(entry)`` of a graph, which is left out by taking ``entry`` for ``exit``.

    Attributes:
        path: of the module it is, or whose output is added: ``encoder.layer.3``.
        kind: the class of that module.
        entry: the node that takes the place.
        exit: the node whose place it takes.
        inside: every node of the module; empty for a branch.
    """

    path: str
    kind: str
    entry: Node
    exit: Node
    inside: frozenset[Node] = frozenset()


class Liveness:
    """What of a graph is still computed when parts of it are left out."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._nodes = graph.nodes
        given = list(self._nodes[-1].args[0])  # pyright: ignore
        first = len(given) - len(graph.outputs)
        released = {first + position for position in graph.released}
        self.kept_outputs = frozenset(
            item for place, item in enumerate(given) if isinstance(item, Node) and place not in released
        )
        self._released = tuple(
            item for place, item in enumerate(given) if isinstance(item, Node) and place in released
        )
        self._needed = _reached(self.kept_outputs, lambda node: node)
        self._dense = self._needed | _reached(self._released, lambda node: node)

    def gone(self, bypasses: Iterable[Bypass]) -> frozenset[Node]:
        """The nodes that are not computed any more.

        A released output goes with the part that computes it: a layer that is left out has no cache.
        """
        instead = {bypass.exit: bypass.entry for bypass in bypasses}
        inside = frozenset().union(*(bypass.inside - {bypass.exit} for bypass in bypasses))

        def resolved(node: Node) -> Node:
            while node in instead:
                node = instead[node]
            return node

        live = _reached(self.kept_outputs, resolved)
        lost = {
            node
            for node in self._released
            if node in inside or (node in self._needed and resolved(node) not in live)
        }
        live |= _reached((node for node in self._released if node not in lost), resolved)
        gone: set[Node] = set()
        for node in self._nodes:
            unread = node in self._dense or any(source in gone for source in node.all_input_nodes)
            if node not in live and unread and node.op != "output":
                gone.add(node)
        return frozenset(gone)

    def freed(self, gone: Collection[Node]) -> tuple[str, ...]:
        """The parameters, buffers and constants that only these nodes are or read, in the order of the graph.

        A tensor with several names counts once, under its first name, and only when it is read under none.
        """
        tensors, tied = self._graph.tensors, self._graph.tied
        names = {
            node: tied.get(tensors[node.name], tensors[node.name])
            for node in self._nodes
            if node.name in tensors
        }
        read = {name for node, name in names.items() if node not in gone}
        return tuple(dict.fromkeys(name for node, name in names.items() if node in gone and name not in read))


def _reached(ends: Iterable[Node], resolved: Callable[[Node], Node]) -> set[Node]:
    """Every node that the ends are computed from, themselves included."""
    pending, found = [resolved(node) for node in ends], set()
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(resolved(source) for source in node.all_input_nodes)
    return found
