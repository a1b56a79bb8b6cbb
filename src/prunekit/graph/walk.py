"""Walks the graph once and lets each operator's rule say how index labels travel through it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.fx import Node

from prunekit.graph.atoms import SINGLE, Atoms, Fixed, Reason, length
from prunekit.graph.call import Call, Rule
from prunekit.graph.constants import Constants
from prunekit.graph.labels import Labels
from prunekit.graph.nodes import depends_on_data, is_written_to, operator_name, sizes, source_line, tensors_of
from prunekit.graph.operator import Operator
from prunekit.graph.trace import Graph


def label(graph: Graph, operators: Mapping[str, Operator]) -> Labels:
    """Label every tensor of ``graph``; operators that are not in the table freeze what they touch."""
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
            labels.dims[node] = _call(node, labels, operators, static)
            if len(labels.atoms.produced) > produced:
                labels.origins[node] = frozenset((node,))
        elif node.op == "output":
            for source in _kept_outputs(graph, node):
                reason = Reason("output", "the model's outputs keep their shape", source_line(source))
                _freeze_all(labels, labels.dims.get(source), reason)
                if source in labels.pointers:
                    labels.atoms.freeze(labels.pointers[source], reason)
    for placeholder in _only_read(graph, labels):
        text = f"the model reads its input {placeholder.name!r}, and another call computes what that holds"
        _freeze_all(labels, labels.inputs[placeholder.name], Reason("input", text))
    return labels


def _only_read(graph: Graph, labels: Labels) -> list[Node]:
    """The inputs that could shrink and to which this call adds nothing.

    The weights that computed them are not in the graph, and would stay as they are: keys and values that
    every step of a decoder reads from its encoder. One that is written to is added to; so is one that comes
    back in a released output together with what weights computed, without other weights in between.
    """
    given: Any = graph.nodes[-1].args[0]
    first = len(given) - len(graph.outputs)
    pending = [given[first + position] for position in graph.released]
    pending = [node for node in pending if isinstance(node, Node) and labels.origins.get(node)]
    renewed: set[Node] = set()
    while pending:
        node = pending.pop()
        if node not in renewed:
            renewed.add(node)
            if labels.origins.get(node) != frozenset((node,)):
                pending.extend(node.all_input_nodes)
    carried = [node for node in graph.nodes if node.name in labels.inputs]
    return [node for node in carried if node not in renewed and not is_written_to(node)]


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
        fixed = tuple(Fixed(size, reason) for size in sizes(value))
        if node.name in graph.carried:
            labels.inputs[node.name] = fixed[:1] + tuple(
                labels.atoms.fresh(dim.size) if dim.size > 1 else Fixed(1, SINGLE) for dim in fixed[1:]
            )
        return labels.inputs.get(node.name, fixed)
    canonical = graph.tied.get(name, name)
    if canonical not in labels.tensors:
        labels.tensors[canonical] = tuple(
            labels.atoms.fresh(size) if size > 1 else Fixed(size, SINGLE) for size in sizes(value)
        )
    return labels.tensors[canonical]


def _call(node: Node, labels: Labels, operators: Mapping[str, Operator], static: set[Node]) -> Any:
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
    operator = operators.get(call.operator)
    rule = operator.label if operator else None
    if any(depends_on_data(item) for item in (value, *(source.meta.get("val") for source in call.inputs))):
        rule, call.refusal = _refuse, "the size of its input or output depends on data"
    outcome, text = _follow(call, rule)
    _pass_pointers(call, labels, moves=operator is not None and operator.moves)
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


def _pass_pointers(call: Call, labels: Labels, *, moves: bool) -> None:
    """Values that point into a dimension still do when they are moved; any other use needs their order."""
    first = call.inputs[:1]
    for source in dict.fromkeys(call.inputs):
        pointed = labels.pointers.get(source)
        if pointed is None or source in call.followed:
            continue
        if moves and [source] == first:
            labels.pointers[call.node] = pointed
        else:
            labels.atoms.freeze(pointed, call.reason("its positions are computed with"))
    if moves and first and first[0] in labels.tallies:
        labels.tallies.add(call.node)


FAILED = "the rule for it failed"
"""How a reason begins that is our mistake; no test tolerates it."""

_CHECKS = ("aten._assert_tensor_metadata", "aten._assert_scalar", "aten._assert_async")


def _refuse(call: Call) -> None:
    """The rule for what cannot be followed."""


def _freeze_data_dependent(node: Node, labels: Labels) -> None:
    """An operator that turns tensor values into numbers; reading a size is not one."""
    if operator_name(node) in ("aten.sym_size", "aten.sym_stride", "aten.sym_numel", *_CHECKS):
        return
    reason = Reason(operator_name(node), "a number is computed from its values", source_line(node))
    for source in node.all_input_nodes:
        _freeze_all(labels, labels.dims.get(source), reason)


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
        found = tuple(length(dim) for dim in outcome)
        assert found == sizes(value), (call.overload, found, sizes(value))
    else:
        for part, item in zip(outcome, value, strict=True):
            _check(call, part, item)
