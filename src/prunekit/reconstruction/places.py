"""Where in a model's parameters an operator's weight lies, and why it cannot be changed where it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from prunekit.errors import WorkloadError
from prunekit.graph import Graph
from prunekit.graph.nodes import operator_name
from prunekit.importance.replay import own_tensors
from prunekit.surgery.tensors import read


@dataclass(frozen=True, eq=False)
class Place:
    """A parameter, or a part of one that an operator reads.

    Attributes:
        name: qualified name of the parameter.
        chain: the operators, in order, that cut, turn or reshape it.
    """

    name: str
    chain: tuple[Node, ...]

    def apply(self, tensor: Tensor) -> Tensor:
        """The part, of the parameter or of anything in its shape."""
        values: dict[Node, Tensor] = {}
        for step in self.chain:
            (source,) = step.all_input_nodes
            given = map_arg(step.args, lambda node: values.get(node, tensor))
            kwargs = map_arg(step.kwargs, lambda node: values.get(node, tensor))
            assert callable(step.target)
            values[step] = step.target(*given, **kwargs)
            values.pop(source, None)
        return values[self.chain[-1]] if self.chain else tensor

    def write(self, tensor: Tensor, value: Tensor) -> None:
        """Put ``value`` where the part lies in ``tensor``; nothing else of it changes."""
        if not self.chain:
            tensor.copy_(value)
            return
        positions = self.positions(tensor.shape).to(tensor.device)
        flat = tensor.flatten()
        flat[positions.flatten()] = value.to(tensor.dtype).flatten()
        tensor.copy_(flat.view_as(tensor))

    def positions(self, shape: torch.Size) -> Tensor:
        """Flat indices of the part in the parameter."""
        return self.apply(torch.arange(shape.numel()).reshape(shape))


_PICKS = frozenset(
    f"aten.{name}"
    for name in (
        "t",
        "transpose",
        "permute",
        "view",
        "reshape",
        "slice",
        "select",
        "narrow",
        "unsqueeze",
        "squeeze",
        "flatten",
        "contiguous",
        "detach",
        "alias",
        "numpy_T",
        "movedim",
    )
)
"""Operators that only cut, turn or reshape: each number of the result is one of the input."""


def model_tensors(model: nn.Module, graph: Graph) -> dict[str, Tensor]:
    """The model's own tensors by the graph's placeholder.

    Raises:
        ShapeError: the graph was traced from another model.
        WorkloadError: the model holds no numbers.
    """
    found = own_tensors(graph, lambda name: read(model, name))
    for placeholder, tensor in found.items():
        if tensor.is_meta:
            raise WorkloadError(
                "It lies on the meta device and holds no numbers",
                where=graph.tensors[placeholder],
                remedy="Load the model's weights first",
            )
    return found


def unfit(tensor: Tensor | None) -> str:
    """Why the model's tensor cannot be updated whatever reads it; "" where it can."""
    if not isinstance(tensor, nn.Parameter):
        return "it is no parameter of the model"
    return "" if tensor.is_floating_point() else "it holds no real floating-point numbers"


def place_of(node: Node, name_of: Callable[[Node], str | None]) -> Place | str:
    """Where a weight lies, or why it cannot be changed."""
    chain: list[Node] = []
    while (name := name_of(node)) is None:
        name = operator_name(node)
        if name not in _PICKS or len(node.all_input_nodes) != 1:
            return f"its weight is computed by {name}"
        chain.append(node)
        node = node.all_input_nodes[0]
    return Place(name, tuple(reversed(chain)))


def behind(node: Node, name_of: Callable[[Node], str | None]) -> str:
    """The first tensor that a node is computed from."""
    while (name := name_of(node)) is None:
        node = node.all_input_nodes[0]
    return name


class Readers:
    """Which operators read which numbers of which parameter.

    Args:
        static: the nodes that are computed from parameters alone.
        name_of: the first name of the parameter, buffer or constant that a node stands for, or None.
    """

    def __init__(self, static: Iterable[Node], name_of: Callable[[Node], str | None]) -> None:
        self._static = set(static)
        self._name_of = name_of
        self._readers: dict[str, list[tuple[Node, Node]]] = {}
        for node in self._static:
            if (name := name_of(node)) is not None:
                self._readers.setdefault(name, []).extend(self._reading(node))

    def _reading(self, node: Node) -> list[tuple[Node, Node]]:
        found: list[tuple[Node, Node]] = []
        pending, seen = [node], set()
        while pending:
            at = pending.pop()
            for user in at.users:
                if user in self._static:
                    pending.extend([] if user in seen else [user])
                    seen.add(user)
                else:
                    found.append((user, at))
        return found

    def unknown(self, name: str) -> str:
        """Why a parameter that no layer known here reads was not updated."""
        readers = [(user, at) for user, at in self._readers.get(name, ()) if user.op != "output"]
        for _, at in readers:
            if isinstance(reason := place_of(at, self._name_of), str):
                return reason
        found = {operator_name(user) for user, _ in readers}
        if not found:
            return "nothing reads it"
        return f"{', '.join(sorted(found))} reads it, which is not known as a linear map here"

    def objection(self, place: Place, reader: Node, shape: torch.Size) -> str:
        """Why a part cannot be changed for one operator alone; "" where it can."""
        others = [(user, at) for user, at in self._readers[place.name] if user is not reader]
        own = None
        for user, at in others:
            other = place_of(at, self._name_of)
            if isinstance(other, Place) and (place.chain or other.chain):
                own = place.positions(shape) if own is None else own
                if not torch.isin(own, other.positions(shape)).any():
                    continue
            return f"{operator_name(user)} reads its weight too"
        return ""
