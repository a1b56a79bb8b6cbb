"""Walks the graph once and lets each operator's rule say how index labels travel through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from prunekit.graph.atoms import Atoms, Dim, Fixed, Reason
from prunekit.graph.constants import Constants, Lookup
from prunekit.graph.trace import Graph
from prunekit.types import Granularity, IntArray

Dims = tuple[Dim, ...]
"""The labels of one tensor, dimension by dimension."""

Rule = Callable[["Call"], "Dims | tuple[Dims, ...] | None"]
"""Gives the labels of an operator's output(s); None = the operator's tensors are frozen."""

SINGLE = Reason("size 1", "a dimension of size one has nothing to remove", obvious=True)


@dataclass
class Labels:
    """The labels of every tensor of a graph.

    Attributes:
        atoms: every fact stated about them.
        dims: per node, the labels of its output (a tuple of outputs for operators that give several).
        tensors: per parameter, buffer or constant, its labels.
        origins: per node, the operators with weights whose outputs it is made of without another in between.
        pointers: per node (and output, where there are several), the dimension that its values point into:
            which experts a router chose.
        tallies: nodes that count how often each index of their one dimension was pointed to.
        lookups: operators that look up indices at constant positions.
    """

    atoms: Atoms
    constants: Constants
    dims: dict[Node, Any] = field(default_factory=dict)
    tensors: dict[str, Dims] = field(default_factory=dict)
    origins: dict[Node, frozenset[Node]] = field(default_factory=dict)
    pointers: dict[Node | tuple[Node, int], Dim] = field(default_factory=dict)
    tallies: set[Node] = field(default_factory=set)
    lookups: list[Lookup] = field(default_factory=list)


def label(graph: Graph, rules: dict[str, Rule]) -> Labels:
    """Label every tensor of ``graph``; operators without a rule freeze what they touch."""
    labels = Labels(Atoms(), Constants(graph))
    static: set[Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" and not node.users:
            continue  # A tensor the model never reads has nothing to follow.
        if node.op == "placeholder":
            labels.dims[node] = _placeholder(graph, node, labels)
            if node.name in graph.tensors:
                static.add(node)
        elif node.op == "call_function":
            if node.all_input_nodes and all(source in static for source in node.all_input_nodes):
                static.add(node)
            labels.origins[node] = _origins(node, labels)
            produced = len(labels.atoms.produced)
            labels.dims[node] = _call(node, labels, rules, static)
            if len(labels.atoms.produced) > produced:
                labels.origins[node] = frozenset((node,))
        elif node.op == "output":
            for source in _kept_outputs(graph, node):
                reason = Reason("output", "the model's outputs keep their shape", source_line(source))
                _freeze_all(labels, labels.dims.get(source), reason)
                if source in labels.pointers:
                    labels.atoms.freeze(labels.pointers[source], reason)
    return labels


def _kept_outputs(graph: Graph, node: Node) -> list[Node]:
    """What the model gives back and must keep its shape; the user's outputs come last among all."""
    given: Any = node.args[0]
    first = len(given) - len(graph.outputs)
    released = {given[first + position] for position in graph.released}
    return [source for source in given if isinstance(source, Node) and source not in released]


def _placeholder(graph: Graph, node: Node, labels: Labels) -> Any:
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    name = graph.tensors.get(node.name)
    if name is None:
        reason = Reason("input", f"the model's input {node.name!r} keeps its shape")
        return tuple(Fixed(size, reason) for size in sizes(value))
    canonical = graph.tied.get(name, name)
    if canonical not in labels.tensors:
        labels.tensors[canonical] = tuple(
            labels.atoms.fresh(size) if size > 1 else Fixed(size, SINGLE) for size in sizes(value)
        )
    return labels.tensors[canonical]


def _call(node: Node, labels: Labels, rules: dict[str, Rule], static: set[Node]) -> Any:
    value = node.meta.get("val")
    if operator_name(node) == "getitem":
        pointed = labels.pointers.get((node.args[0], node.args[1]))  # pyright: ignore[reportArgumentType]
        if pointed is not None:
            labels.pointers[node] = pointed
        return labels.dims[node.args[0]][node.args[1]]  # pyright: ignore[reportArgumentType]
    if not tensors_of(value):
        if any(tensors_of(source.meta.get("val")) for source in node.all_input_nodes):
            _freeze_data_dependent(node, labels)
        return None
    call = Call(node, labels, static)
    rule = rules.get(call.operator)
    if any(depends_on_data(item) for item in (value, *(source.meta.get("val") for source in call.inputs))):
        rule, call.refusal = _refuse, "the size of its input or output depends on data"
    outcome, text = _follow(call, rule)
    _pass_pointers(call, labels)
    if outcome is None:
        reason = Reason(call.overload, text, source_line(node))
        for source in node.all_input_nodes:
            _freeze_all(labels, labels.dims.get(source), reason)
        return _fixed_like(value, reason)
    return outcome


def _origins(node: Node, labels: Labels) -> frozenset[Node]:
    found = {labels.origins.get(source, frozenset()) for source in node.all_input_nodes}
    return next(iter(found)) if len(found) == 1 else frozenset().union(*found)


def _follow(call: Call, rule: Rule | None) -> tuple[Any, str]:
    """What the rule says, or None and why there is nothing it says."""
    if rule is None:
        return None, "no rule says how labels travel through it"
    try:
        outcome = rule(call)
        if outcome is not None:
            _check(call, outcome, call.node.meta["val"])
    except Exception as error:  # a call that the rule's author did not foresee must not be pruned wrongly
        return None, f"{FAILED} ({type(error).__name__}: {error}); please report it"
    return outcome, call.refusal


_MOVES = (
    "to _to_copy type_as view reshape flatten unflatten unsqueeze squeeze expand contiguous clone detach "
    "transpose permute t slice select index gather repeat_interleave alias"
)
_POINTING = frozenset(f"aten.{name}" for name in _MOVES.split())
"""Operators whose outputs are values of their first input, put elsewhere."""


def _pass_pointers(call: Call, labels: Labels) -> None:
    """Values that point into a dimension still do when they are moved; any other use needs their order."""
    first = call.inputs[:1]
    for source in dict.fromkeys(call.inputs):
        pointed = labels.pointers.get(source)
        if pointed is None or source in call.followed:
            continue
        if [source] == first and call.operator in _POINTING:
            labels.pointers[call.node] = pointed
        else:
            labels.atoms.freeze(pointed, call.reason("its positions are computed with"))
    if first and first[0] in labels.tallies and call.operator in _POINTING:
        labels.tallies.add(call.node)


FAILED = "the rule for it failed"
"""How a reason begins that is our mistake; no test tolerates it."""

_CHECKS = ("aten._assert_tensor_metadata", "aten._assert_scalar", "aten._assert_async")


def _refuse(call: Call) -> None:
    """The rule for what cannot be followed."""


def depends_on_data(value: Any) -> bool:
    """Some size is only known once the data is."""
    return any(
        isinstance(size, torch.SymInt) and size.node.hint is None
        for tensor in tensors_of(value)
        for size in tensor.shape
    )


def _freeze_data_dependent(node: Node, labels: Labels) -> None:
    """An operator that turns tensor values into numbers; reading a size is not one."""
    if operator_name(node) in ("aten.sym_size", "aten.sym_stride", "aten.sym_numel", *_CHECKS):
        return
    reason = Reason(operator_name(node), "a number is computed from its values", source_line(node))
    for source in node.all_input_nodes:
        _freeze_all(labels, labels.dims.get(source), reason)


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor in what a node gives: one, or those of a nested tuple."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_of(item)]
    return []


def _freeze_all(labels: Labels, dims: Any, reason: Reason) -> None:
    if dims is None:
        return
    for dim in dims:
        if isinstance(dim, tuple) or dim is None:
            _freeze_all(labels, dim, reason)
        else:
            labels.atoms.freeze(dim, reason)


def _fixed_like(value: Any, reason: Reason) -> Any:
    if isinstance(value, Tensor):
        known = [0] * value.ndim if depends_on_data(value) else sizes(value)
        return tuple(Fixed(size, reason) for size in known)
    return tuple(_fixed_like(item, reason) for item in value) if isinstance(value, tuple | list) else None


def _check(call: Call, outcome: Any, value: Any) -> None:
    """A rule that gives labels of another shape than its tensor is a bug of ours."""
    if isinstance(value, Tensor):
        found = tuple(dim.size if isinstance(dim, Fixed) else len(dim) for dim in outcome)
        assert found == sizes(value), (call.overload, found, sizes(value))
    else:
        for part, item in zip(outcome, value, strict=True):
            _check(call, part, item)


def sizes(value: Tensor) -> tuple[int, ...]:
    """The shape in plain integers: an open dimension counts as in the example."""
    return tuple(concrete(size) for size in value.shape)


def concrete(size: Any) -> int:
    """The integer behind a size: its own, or the example's where it is open."""
    if isinstance(size, Node):
        size = size.meta["val"]
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        assert hint is not None, "a size that depends on data has no value to label with"
        return int(hint)
    return int(size)


def operator_name(node: Node) -> str:
    """``aten.add`` for every overload of add, in place or not; the plain name for anything else."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        packet = target.overloadpacket.__name__
        if packet.endswith("_") and not packet.endswith("__"):
            packet = packet[:-1]
        return f"{target.namespace}.{packet}"
    return getattr(target, "__name__", str(target))


def source_line(node: Node) -> str:
    """``file:line: text`` of the innermost line outside torch that ran this operator, or ""."""
    lines = (node.meta.get("stack_trace") or "").splitlines()
    best = ""
    for position, line in enumerate(lines):
        parts = line.strip().split('"')
        if line.strip().startswith("File") and len(parts) == 3 and "/torch/" not in parts[1]:
            number = parts[2].split(",")[1].strip().removeprefix("line ")
            text = lines[position + 1].strip() if position + 1 < len(lines) else ""
            best = f"{parts[1]}:{number}: {text}"
    return best


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


def bind(node: Node) -> dict[str, Any]:
    """Arguments by the names of the operator's schema, defaults filled in."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return {str(position): value for position, value in enumerate(node.args)} | dict(node.kwargs)
    bound: dict[str, Any] = {}
    for position, argument in enumerate(target._schema.arguments):
        if position < len(node.args):
            bound[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        elif argument.has_default_value():
            bound[argument.name] = argument.default_value
    return bound


def outputs_of(labels: Labels, node: Node) -> list[Dims]:
    """The labels of a node's output tensors, as a flat list."""
    return list(flat_dims(labels.dims.get(node)))


def flat_dims(outcome: object) -> Iterator[Dims]:
    """Every tensor's labels in what a node was given: one tensor's, or a tuple of them."""
    if not isinstance(outcome, tuple):
        return
    if any(isinstance(item, tuple) or item is None for item in outcome):
        for item in outcome:
            yield from flat_dims(item)
    else:
        yield outcome
