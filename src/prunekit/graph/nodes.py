"""Reading one node of a traced graph: its operator, arguments, shapes and source line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node


def operator_name(node: Node) -> str:
    """``aten.add`` for every overload of add, in place or not; the plain name for anything else."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        packet = target.overloadpacket.__name__
        if packet.endswith("_") and not packet.endswith("__"):
            packet = packet[:-1]
        return f"{target.namespace}.{packet}"
    return getattr(target, "__name__", str(target))


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


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor in what a node gives: one, or those of a nested tuple."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_of(item)]
    return []


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


def depends_on_data(value: Any) -> bool:
    """Some size is only known once the data is."""
    return any(
        isinstance(size, torch.SymInt) and size.node.hint is None
        for tensor in tensors_of(value)
        for size in tensor.shape
    )


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


def is_written_to(node: Node) -> bool:
    """Some operator writes into the node's tensor, or into a view of it."""
    pending, seen = [node], set()
    while pending:
        at = pending.pop()
        for user in at.users:
            if user in seen or not isinstance(user.target, torch._ops.OpOverload):
                continue
            seen.add(user)
            given = bind(user)
            aliased = [
                argument.alias_info
                for argument in user.target._schema.arguments
                if argument.alias_info is not None and given.get(argument.name) is at
            ]
            if any(alias.is_write for alias in aliased):
                return True
            pending.extend([user] if aliased else [])
    return False


def static_nodes(nodes: Iterable[Node], is_tensor: Callable[[Node], bool]) -> set[Node]:
    """The nodes that are a parameter, buffer or constant, or computed from these alone."""
    found: set[Node] = set()
    for node in nodes:
        inputs = node.all_input_nodes
        if is_tensor(node) or (inputs and all(source in found for source in inputs)):
            found.add(node)
    return found


def calls_of(node: Node) -> list[tuple[str, str, str]]:
    """The calls of modules that an operator runs in: name of the call, path and class."""
    stack = (node.meta.get("nn_module_stack") or {}).items()
    calls = (
        (call, path.removeprefix("L['self'].").removeprefix("L['self']"), kind)
        for call, (path, kind) in stack
        if not call.startswith("_empty")
    )
    return [(call, path, kind) for call, path, kind in calls if path]
