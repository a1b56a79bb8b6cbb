"""Runs a graph on all batches side by side, stage by stage, so that every operator runs once per batch."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from prunekit.graph.nodes import tensors_of
from prunekit.reconstruction.shelf import Held, Shelf

Watcher = Callable[[Mapping[Node, Any]], None]
"""Is given the values by node."""


def stages(nodes: Sequence[Node], targets: Collection[Node]) -> dict[str, int]:
    """The stage in which each node runs: one more than what it reads for a target, else the same.

    What a target of stage ``s`` reads is there after stage ``s - 1``; targets of one stage depend on none of
    each other. Where an operator writes into a tensor the order of the graph is kept and each target begins a
    stage of its own.
    """
    in_order = _writes(nodes)
    found: dict[str, int] = {}
    latest = 0
    for node in nodes:
        stage = max((found[source.name] for source in node.all_input_nodes), default=0)
        if in_order and node.op == "call_function":
            stage = max(stage, latest)
        stage += node in targets
        latest = max(latest, stage)
        found[node.name] = stage
    return found


class Stream(Interpreter):
    """One graph on several batches; between stages only what later ones read is held.

    Args:
        module: the graph.
        tensor_of: the parameter, buffer or constant that a node stands for, or None.
        stage: of each node by name; a node without one runs in the latest stage of what it reads.
        batches: for each the leaves of its inputs.
    """

    def __init__(
        self,
        module: GraphModule,
        tensor_of: Callable[[Node], Any],
        stage: Mapping[str, int],
        batches: Sequence[Sequence[Any]],
    ) -> None:
        super().__init__(module)
        nodes = list(module.graph.nodes)
        self._static: dict[Node, Any] = {}
        inputs: list[Node] = []
        for node in nodes:
            if node.op == "get_attr" or node.op == "placeholder":
                value = tensor_of(node)
                if value is None and node.op == "placeholder":
                    inputs.append(node)
                else:
                    self._static[node] = self.fetch_attr(str(node.target)) if value is None else value
        shelf = Shelf(len(batches)) if len(batches) > 1 and not _writes(nodes) else None
        self._held: list[Held] = []
        for leaves in batches:
            given = dict(zip(inputs, leaves, strict=True))
            self._held.append(Held(given, shelf, self._held[0] if self._held else None))
        self._by_stage: dict[int, list[Node]] = {}
        place: dict[Node, tuple[int, int]] = {}
        for number, node in enumerate(nodes):
            known = stage.get(node.name)
            if known is None:
                known = max((place[source][0] for source in node.all_input_nodes), default=0)
            place[node] = (known, number)
            if node.op not in ("placeholder", "get_attr", "output"):
                self._by_stage.setdefault(known, []).append(node)
        self._dead_after: dict[Node, list[Node]] = {}
        for node in nodes:
            if node not in self._static and node.op != "output":
                last = max(
                    (user for user in node.users if user.op != "output"), key=place.__getitem__, default=node
                )
                self._dead_after.setdefault(last, []).append(node)

    def advance(self, batch: int, stage: int, watchers: Mapping[Node, Watcher]) -> Mapping[Node, Any]:
        """Run one batch through a stage, and give what is held then.

        A watcher is called once its node has run, with what is held at that moment, before an operator can
        write into it.
        """
        held = self._held[batch].values
        values = ChainMap(held, self._static)
        self.env = values  # type: ignore[assignment]
        for node in self._by_stage.get(stage, ()):
            held[node] = self.run_node(node)
            if node in watchers:
                watchers[node](values)
            for dead in self._dead_after.get(node, ()):
                held.pop(dead, None)
        self.env = {}
        self._held[batch].settle()
        return values

    @property
    def held_bytes(self) -> int:
        """Bytes of what is held for all batches, each storage once."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for held in self._held
            for value in held.values.values()
            for tensor in tensors_of(value)
        }
        return sum(storages.values())


def _writes(nodes: Sequence[Node]) -> bool:
    """Some operator writes into a tensor that is there."""
    return any(
        isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable for node in nodes
    )


def is_parameter(value: object) -> bool:
    """A tensor of real floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()
