"""What a model computes as a list of operators, to compare two models that have no values yet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from prunekit.graph.export import Inputs, export
from prunekit.graph.nodes import operator_name

_SHAPES = ("view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", "unflatten")
_COPIES = ("contiguous", "clone", "alias")
IN_ORDER = frozenset(f"aten.{name}" for name in (*_SHAPES, *_COPIES))
"""Operators that give the same numbers in the same order, perhaps in another shape."""


@dataclass(frozen=True)
class GraphForm:
    """The operators of a model in the order in which they run, by what each is given.

    Two models of equal forms compute the same function of the same tensors, whatever these hold: every step
    is the same operator with the same constants on the results of the same steps. The opposite does not hold.

    Attributes:
        steps: operator and arguments of each; what nobody reads is left out.
        places: where in the user's code each comes from, for messages.
        outputs: what is given back.
    """

    steps: tuple[Any, ...]
    places: tuple[str, ...]
    outputs: Any

    def difference(self, other: GraphForm) -> str:
        """The first step in which another model differs; "" where none does."""
        for number, (mine, theirs) in enumerate(zip(self.steps, other.steps, strict=False)):
            if mine != theirs:
                where = f" in {other.places[number]}" if other.places[number] else ""
                return f"it computes {_shown(theirs)}{where} in place of {_shown(mine)}"
        if len(self.steps) != len(other.steps):
            return f"it computes {len(other.steps)} operators in place of {len(self.steps)}"
        return "" if self.outputs == other.outputs else "it gives other results back"


def form_of(model: nn.Module, inputs: Inputs, names: Mapping[str, str]) -> GraphForm:
    """Trace a model, which may lie on the meta device, and bring its graph into the form to compare.

    1. Sizes are those of the trace, with open ones by the order in which they first appear.
    2. A tensor that only changed its shape is the tensor it came from and its shape; one that came back to
       the shape it had is that tensor. Not where operators write into tensors, which may share memory.
    3. What nothing reads is left out, and so are outputs that hold nothing, such as the cache of a layer that
       went.

    Args:
        model: in any mode; traced in evaluation mode.
        inputs: example inputs, on its device.
        names: by the name of each of its parameters and buffers, what it is called in the form. What is not
            in there is a constant, known by its value; one without a value equals nothing.

    Raises:
        TraceError: torch.export cannot follow the model.
    """
    program, _ = export(model, inputs)
    return _Reader(program, names).read()


class _Reader:
    """Reads one exported program."""

    def __init__(self, program: ExportedProgram, names: Mapping[str, str]) -> None:
        self._program = program
        self._names = names
        self._values: dict[Node, Any] = {}
        self._origin: dict[Node, tuple[Any, tuple[str, ...]]] = {}
        self._symbols: dict[str, str] = {}
        self._specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self._collapses = not any(_writes(node) for node in program.graph.nodes)

    def read(self) -> GraphForm:
        nodes = list(self._program.graph.nodes)
        given = [item for item in _outputs(nodes) if not _is_empty(item)]
        live = _live(nodes, given)
        steps: list[Any] = []
        places: list[str] = []
        inputs = 0
        for node in nodes:
            if node.op == "placeholder":
                is_input = self._specs[node.name].kind is InputKind.USER_INPUT
                self._values[node] = ("input", inputs) if is_input else self._tensor(node)
                inputs += is_input
                self._shape(node)
            elif node.op == "get_attr":
                self._values[node] = self._attribute(node)
            elif node.op == "call_function" and node in live and not self._is_known(node):
                self._values[node] = ("step", len(steps))
                arguments = self._argument(node.args), self._argument(dict(node.kwargs))
                steps.append((str(node.target), *arguments))
                places.append(_place(node))
        return GraphForm(tuple(steps), tuple(places), self._argument(given))

    def _is_known(self, node: Node) -> bool:
        """A size, or a tensor in another shape: no step of its own."""
        value = node.meta.get("val")
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool):
            self._values[node] = ("size", self._size(value))
            return True
        if not self._collapses or not self._keeps_order(node):
            return False
        source = node.args[0]
        assert isinstance(source, Node)
        origin, before = self._origin.get(source, (self._values[source], self._shape(source)))
        shape = self._shape(node)
        self._origin[node] = origin, before
        self._values[node] = origin if shape == before else ("shaped", origin, shape)
        return True

    def _keeps_order(self, node: Node) -> bool:
        name = operator_name(node)
        source = node.args[0] if node.args else None
        if not isinstance(source, Node) or not isinstance(source.meta.get("val"), Tensor):
            return False
        if name == "aten.expand":  # To the sizes it has, and more dimensions of one in front.
            before, after = self._shape(source), self._shape(node)
            more = len(after) - len(before)
            return after[more:] == before and set(after[:more]) <= {"1"}
        if name == "aten.slice":  # All of it.
            return self._shape(source) == self._shape(node)
        return name in IN_ORDER

    def _shape(self, node: Node) -> tuple[str, ...]:
        value = node.meta.get("val")
        return tuple(map(self._size, value.shape)) if isinstance(value, Tensor) else ()

    def _size(self, value: Any) -> str:
        def renamed(found: re.Match[str]) -> str:
            return self._symbols.setdefault(found.group(), f"open{len(self._symbols)}")

        return re.sub(r"\b[su]\d+\b", renamed, str(value))

    def _tensor(self, node: Node) -> Any:
        spec = self._specs[node.name]
        name = self._names.get(spec.target or "")
        if name is not None and spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            return ("tensor", name)
        found = self._program.state_dict.get(spec.target or "")
        found = self._program.constants.get(spec.target or "") if found is None else found
        return _constant(found, node)

    def _attribute(self, node: Node) -> Any:
        return _constant(getattr(self._program.graph_module, str(node.target), None), node)

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Node):
            return self._values[value]
        if isinstance(value, dict):
            return tuple((key, self._argument(item)) for key, item in value.items())
        if isinstance(value, list | tuple):
            return tuple(map(self._argument, value))
        if isinstance(value, torch.SymInt):
            return ("size", self._size(value))
        return repr(value)


def _constant(value: Any, node: Node) -> Any:
    """A constant by its value; one that has none, or holds a graph, by itself: equal to nothing else."""
    if not isinstance(value, Tensor) or (value.is_meta and value.numel()):
        return ("unknown", node)
    values = [] if value.is_meta else value.detach().cpu().reshape(-1).tolist()
    return ("constant", str(value.dtype), tuple(value.shape), repr(values))


def _outputs(nodes: list[Node]) -> list[Any]:
    (given,) = nodes[-1].args
    return list(given) if isinstance(given, list | tuple) else [given]


def _is_empty(output: Any) -> bool:
    value = output.meta.get("val") if isinstance(output, Node) else None
    return isinstance(value, Tensor) and any(type(size) is int and size == 0 for size in value.shape)


def _live(nodes: list[Node], outputs: list[Any]) -> set[Node]:
    """What the outputs depend on, and what writes into tensors."""
    live: set[Node] = {item for item in outputs if isinstance(item, Node)}
    for node in reversed(nodes[:-1]):
        if node in live or _writes(node):
            live.update((node, *node.all_input_nodes))
    return live


def _writes(node: Node) -> bool:
    target = node.target
    writes = isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable
    return writes and operator_name(node) != "aten.detach"  # detach_ writes no number


def _place(node: Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0].removeprefix("L['self'].").removeprefix("L['self']") if stack else ""


def _shown(step: Any) -> str:
    text = f"{step[0]}{step[1]}"
    return text if len(text) <= 120 else f"{text[:117]}..."
