"""Runs a traced graph on the model's own tensors, showing what passes and counting its bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.export.graph_signature import InputKind
from torch.fx import Interpreter, Node
from torch.utils import _pytree as pytree

from prunekit.errors import CalibrationError, ShapeError
from prunekit.graph import Graph
from prunekit.graph.nodes import tensors_of
from prunekit.importance.lending import Lending
from prunekit.ranks import own_part

Watcher = Callable[[Mapping[Node, Any]], None]
"""Called once a node has run, with the values that are alive."""


class Ledger:
    """Counts the bytes of the tensors that are held, each storage once, and keeps to a limit.

    Counted: activations that are alive between operators, what autograd saves, and whatever is charged. Not
    counted: the model, the batch itself, and what an operator allocates and frees while it runs.

    Args:
        limit: the most bytes that may be held, or None.
        known: tensors that are there anyway.
    """

    def __init__(self, limit: int | None, known: Iterable[Tensor] = ()) -> None:
        self.limit = limit
        self.peak = 0
        self.since = 0
        self._known = {_storage(tensor)[0] for tensor in known}
        self._batch: set[int] = set()
        self._held: Counter[int] = Counter()
        self._bytes = 0

    def start(self, state: int) -> None:
        """Begin a run with ``state`` bytes already held."""
        self._held.clear()
        self._bytes, self.since = state, 0
        self._note("the statistics")

    def ignore(self, value: Any) -> None:
        """The tensors of a batch are there anyway, until the next one."""
        self._batch = {_storage(leaf)[0] for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)}

    def add(self, value: Any, where: object) -> None:
        """A value is held.

        Raises:
            CalibrationError: with it the limit is passed.
        """
        for tensor in tensors_of(value):
            pointer, size = _storage(tensor)
            if pointer not in self._known and pointer not in self._batch:
                self._held[pointer] += 1
                if self._held[pointer] == 1:
                    self._bytes += size
        self._note(where)

    def remove(self, value: Any) -> None:
        """A value is let go."""
        for tensor in tensors_of(value):
            pointer, size = _storage(tensor)
            if pointer in self._held:
                self._held[pointer] -= 1
                if not self._held[pointer]:
                    del self._held[pointer]
                    self._bytes -= size

    def charge(self, size: int, where: object) -> None:
        """``size`` bytes are held for a moment.

        Raises:
            CalibrationError: with them the limit is passed.
        """
        self._bytes += size
        self._note(where)
        self._bytes -= size

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Count what autograd saves in this block; it stays held until the next :meth:`start`."""

        def pack(tensor: Tensor) -> Tensor:
            self.save(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield

    def save(self, tensor: Tensor) -> None:
        """Autograd saves a tensor; it stays held until the next :meth:`start`."""
        self.add(tensor, "what autograd saves")

    def _note(self, where: object) -> None:
        self.peak = max(self.peak, self._bytes)
        self.since = max(self.since, self._bytes)
        if self.limit is not None and self._bytes > self.limit:
            raise CalibrationError(
                f"Calibration holds {self._bytes} bytes at {where}",
                expected=f"at most {self.limit} bytes",
                where="memory_bytes",
                remedy="Allow more, give shorter or smaller examples, or, for criteria with gradients, fewer "
                "examples in each batch",
            )


def _is_meta(item: Any) -> bool:
    return isinstance(item, torch.device) and item.type == "meta"


def _storage(tensor: Tensor) -> tuple[int, int]:
    storage = own_part(tensor).untyped_storage()
    return storage.data_ptr(), storage.nbytes()


class Replay(Interpreter):
    """The operators of a traced graph, run one after another on given parameters and inputs.

    Values are let go after their last use, so that no more is held than an eager forward pass would hold.

    Args:
        graph: the traced model.
        tensors: the model's parameters and buffers by every qualified name.
        watchers: what to call after which node.
        keep: nodes to keep until another has run.
        lending: where each process holds parts of some parameters, what lends them whole.

    Raises:
        ShapeError: the graph was traced from another model.
        CalibrationError: it was traced on the meta device and has a constant, whose values nobody knows.
    """

    def __init__(
        self,
        graph: Graph,
        tensors: Mapping[str, Tensor],
        watchers: Mapping[Node, list[Watcher]],
        keep: Mapping[Node, Node],
        lending: Lending | None = None,
    ) -> None:
        super().__init__(graph.program.graph_module)
        self._nodes = graph.nodes
        self._watchers = watchers
        self._tensors = own_tensors(graph, tensors.get)
        self._check_values(graph)
        self._lending = lending
        lent = [n for n in graph.nodes if lending is not None and graph.tensors.get(n.name) in lending]
        self._names = {node: graph.tensors[node.name] for node in lent}
        self._due = _first_uses(graph, lent)
        self._device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
        self._placed = {
            node
            for node in graph.nodes
            if any(map(_is_meta, pytree.arg_tree_leaves(*node.args, **node.kwargs)))
        }
        self._inputs = [
            spec.arg.name
            for spec in graph.program.graph_signature.input_specs
            if spec.kind is InputKind.USER_INPUT
        ]
        self._outputs = len(graph.outputs)
        self._spec = graph.program.call_spec.out_spec
        self._dead_after = _last_uses(graph, keep, lent)

    def forward_on(
        self,
        leaves: list[Any],
        ledger: Ledger,
        *,
        instead: Mapping[Node, Node] | None = None,
        watched: bool = True,
    ) -> Any:
        """Run the graph on the leaves of its inputs, and give the outputs as the model would.

        Args:
            leaves: of the inputs.
            ledger: counts what is held.
            instead: nodes whose value is thrown away for that of an earlier node.
            watched: the watchers are called.

        Raises:
            CalibrationError: the ledger's limit is passed.
        """
        values = self._tensors | dict(zip(self._inputs, leaves, strict=True))
        self.env = {}
        before: dict[Node, Tensor] = {}
        for node in self._nodes:
            if node.op == "placeholder":
                if node not in self._names:
                    self.env[node] = values.get(node.name)
                continue
            self._borrow(node, ledger)
            if node.op == "output":
                outputs: Any = node.args[0]
                given = [self.env[item] if isinstance(item, Node) else item for item in outputs]
                assert self._spec is not None
                for value in before.values():
                    ledger.remove(value)
                self._give_back(self._names)  # An output may be a parameter.
                return pytree.tree_unflatten(given[len(given) - self._outputs :], self._spec)
            self.env[node] = self.run_node(node)
            if instead and node in instead:
                self.env[node] = before[instead[node]]
            if instead and node in instead.values():
                before[node] = self.env[node].clone()  # An operator may write into it afterwards.
                ledger.add(before[node], node.name)
            ledger.add(self.env[node], node.name)
            for watcher in self._watchers.get(node, ()) if watched else ():
                watcher(self.env)
            for dead in self._dead_after.get(node, ()):
                self._give_back([dead])
                ledger.remove(self.env.pop(dead))
        raise AssertionError("a graph ends with its outputs")

    def fetch_args_kwargs_from_env(self, n: Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What an operator is called with; what it made on the meta device it makes beside the weights."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        if n not in self._placed:
            return args, kwargs
        return pytree.tree_map(lambda item: self._device if _is_meta(item) else item, (args, kwargs))

    def _give_back(self, nodes: Iterable[Node]) -> None:
        """What was lent of these is not needed any more."""
        for node in nodes:
            if node in self._names and node in self.env:
                assert self._lending is not None
                self._lending.give_back(self.env[node])

    def _borrow(self, node: Node, ledger: Ledger) -> None:
        """Have the parameters whole that are read here for the first time."""
        for tensor in self._due.get(node, ()):
            assert self._lending is not None
            self.env[tensor] = self._lending.lend(self._names[tensor])
            ledger.add(self.env[tensor], self._names[tensor])

    def _check_values(self, graph: Graph) -> None:
        for placeholder, tensor in self._tensors.items():
            if tensor.is_meta:
                raise CalibrationError(
                    "It has no values: it is on the meta device",
                    where=graph.tensors[placeholder],
                    remedy="Register it as a buffer: then the model has its values, where the trace has none",
                )


def own_tensors(graph: Graph, find: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
    """The model's own tensors by the graph's placeholder; a constant that only the graph has is the graph's.

    Args:
        graph: the traced model.
        find: the model's tensor of a qualified name, or None.

    Raises:
        ShapeError: the graph was traced from another model.
    """
    own: dict[str, Tensor] = {}
    for placeholder, name in graph.tensors.items():
        found = find(name)
        if found is None and name in graph.program.constants:
            found = graph.tensor(name)
        shape = tuple(graph.tensor(name).shape)
        if found is None or tuple(found.shape) != shape:
            given = "none" if found is None else f"one of the shape {tuple(found.shape)}"
            raise ShapeError(
                f"The groups' graph has a tensor of the shape {shape}, the model {given}",
                where=name,
                remedy="The groups were found on another model; find them again on this one",
            )
        own[placeholder] = found
    return own


def _first_uses(graph: Graph, nodes: Iterable[Node]) -> dict[Node, list[Node]]:
    """The nodes by the one that reads them first."""
    place = {node: number for number, node in enumerate(graph.nodes)}
    due: dict[Node, list[Node]] = {}
    for node in nodes:
        if node.users:
            due.setdefault(min(node.users, key=place.__getitem__), []).append(node)
    return due


def _last_uses(graph: Graph, keep: Mapping[Node, Node], lent: Collection[Node]) -> dict[Node, list[Node]]:
    """The values that are not needed once a node has run; of what the model holds, those that are lent."""
    place = {node: number for number, node in enumerate(graph.nodes)}
    dead: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "output" or (node.op == "placeholder" and (node not in lent or not node.users)):
            continue
        last = max([node, *node.users], key=place.__getitem__)
        if node in keep:
            last = max(last, keep[node], key=place.__getitem__)
        dead.setdefault(last, []).append(node)
    return dead


def leaves_of(graph: Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any] | None:
    """The inputs as the graph takes them, or None where they are not what it was traced for.

    Sizes of open dimensions may differ from the example; every other size, type and plain value may not.
    """
    if set(kwargs) != set(graph.kwargs):
        return None
    ordered = {name: kwargs[name] for name in graph.kwargs}
    leaves, spec = pytree.tree_flatten((tuple(args), ordered))
    example, traced = pytree.tree_flatten((graph.args, graph.kwargs))
    if spec != traced:
        return None
    for given, known, is_open in zip(leaves, example, graph.open_inputs, strict=True):
        if isinstance(known, Tensor):
            first = 1 if is_open else 0
            if not isinstance(given, Tensor) or given.dtype != known.dtype or given.ndim != known.ndim:
                return None
            if given.shape[first:] != known.shape[first:]:
                return None
        elif type(given) is not type(known) or given != known:
            return None
    return leaves
