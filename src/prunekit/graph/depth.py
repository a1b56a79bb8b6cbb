"""Parts of a graph that can be left out whole: layers of a stack, and residual branches."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import Tensor
from torch.fx import Node

from prunekit.graph.atoms import Fixed, length
from prunekit.graph.axes import Structure
from prunekit.graph.labels import outputs_of
from prunekit.graph.liveness import Bypass, Liveness
from prunekit.graph.nodes import calls_of, operator_name, sizes
from prunekit.graph.rules import elementwise, normalization, shape
from prunekit.graph.trace import Graph


@dataclass
class _Module:
    """One module's call in the graph: its nodes, and what it calls."""

    path: str
    kind: str
    nodes: list[Node] = field(default_factory=list)
    children: dict[str, _Module] = field(default_factory=dict)


class Depth:
    """What can be left out of one labelled graph.

    Rules for layers:

    1. A module can be left out if it is called once; one of the tensors it is given (its entry) has the same
       labels as the one tensor that is used of it and depends on the entry (its exit); and a path of
       element-wise operators, norms and changes of shape leads from the entry to the exit over an addition.
    2. Of such modules inside each other the outer one is the layer, unless it holds several of one class: a
       stage of a network holds blocks, a transformer layer holds an attention and a feed-forward part. Where
       a container does nothing but call a module, it is the module.

    Rule for branches: an addition ``x + f(x)`` of two tensors of the same shape and labels, the second of
    which is computed from the first. Leaving it out gives ``x``.
    """

    def __init__(self, graph: Graph, structure: Structure) -> None:
        self._graph = graph
        self._structure = structure
        self._place = {node: place for place, node in enumerate(graph.nodes)}
        self._repeated: set[str] = set()
        self._root = self._modules()
        self._found: dict[str, Bypass | str] = {}
        self._liveness = Liveness(graph)
        self._freed: dict[Bypass, tuple[str, ...]] = {}

    @cached_property
    def layers(self) -> tuple[Bypass, ...]:
        """Whole modules, in the order of the graph."""
        return tuple(sorted(self._layers(self._root), key=lambda layer: self._place[layer.exit]))

    @cached_property
    def stuck(self) -> dict[str, str]:
        """Modules that look like layers and cannot be left out, by path; and why.

        Those that stand in a numbered list beside another one of their class, or are called again and again,
        call modules themselves, and neither are, hold, nor lie in a layer.
        """
        return dict(self._stuck(self._root, frozenset(layer.path for layer in self.layers)))

    @cached_property
    def branches(self) -> tuple[Bypass, ...]:
        """Residual branches that are no layers by themselves, in the order of the graph."""
        whole = {self.frees(layer) for layer in self.layers}
        found = (self._branch(node) for node in self._graph.nodes)
        return tuple(branch for branch in found if branch is not None and self.frees(branch) not in whole)

    def frees(self, bypass: Bypass) -> tuple[str, ...]:
        """The tensors that nothing reads any more once a part is left out, in the order of the graph."""
        if bypass not in self._freed:
            self._freed[bypass] = self._liveness.freed(self._liveness.gone((bypass,)))
        return self._freed[bypass]

    def _modules(self) -> _Module:
        root = _Module("", "")
        for node in self._graph.nodes:
            if node.op != "call_function":
                continue
            at = root
            for call, path, kind in calls_of(node):
                if "@" in call:  # A second call of a module is called like the first, with a number.
                    self._repeated.add(path)
                at = at.children.setdefault(path, _Module(path, kind))
                at.nodes.append(node)
        return root

    def _layers(self, module: _Module) -> Iterator[Bypass]:
        """Rule 2."""
        below = [layer for child in module.children.values() for layer in self._layers(child)]
        own = self._bypass(module)
        kinds = [layer.kind for layer in below]
        several = len(set(kinds)) < len(kinds)
        if isinstance(own, str) or several or any(_ends(layer) == _ends(own) for layer in below):
            yield from below
        else:
            yield own

    def _stuck(self, module: _Module, layers: Collection[str]) -> Iterator[tuple[str, str]]:
        kinds = Counter(map(_kind, module.children.values()))
        for child in module.children.values():
            if child.path in layers or not child.children:
                continue
            inside = any(path.startswith(f"{child.path}.") for path in layers)
            found = "" if inside else self._bypass(child)
            several = kinds[_kind(child)] > 1 or child.path in self._repeated
            if isinstance(found, str) and found and several and _list_of(child.path):
                yield child.path, found
            else:
                yield from self._stuck(child, layers)

    def _bypass(self, module: _Module) -> Bypass | str:
        """What leaving a module out means, or why it cannot be left out."""
        if module.path not in self._found:
            self._found[module.path] = self._find(module)
        return self._found[module.path]

    def _find(self, module: _Module) -> Bypass | str:
        """Rule 1."""
        if not module.path or module.path in self._repeated:
            return "it is called several times"
        inside = frozenset(module.nodes)
        used = [node for node in module.nodes if self._is_used_outside(node, inside)]
        given = {source for node in module.nodes for source in node.all_input_nodes if source not in inside}
        entries = sorted(
            (node for node in given if self._is_activation(node)), key=self._place.__getitem__, reverse=True
        )
        reason = "its output differs from all its inputs in shape, or in the units that lie in it"
        for entry in entries:  # What was computed last is the stream; what came before is a condition.
            moved = _dependent(entry, module.nodes)
            exits = [node for node in used if node in moved]
            same = [node for node in exits if self._same_labels(entry, node)]
            if same and len(exits) > 1:
                reason = "several of the tensors it computes are used after it"
            if not same or len(exits) > 1:
                continue
            found = Bypass(module.path, module.kind, entry, exits[0], inside)
            if not self._skips(found, moved):
                reason = "no addition leads what it is given past its weights"
            elif not self._saves(found):
                reason = "its parameters are read elsewhere too"
            else:
                return found
        return reason

    def _is_used_outside(self, node: Node, inside: Collection[Node]) -> bool:
        """Some other operator, or an output that is not released, reads a tensor."""
        outside = [user for user in node.users if user not in inside]
        only_output = all(user.op == "output" for user in outside)
        return bool(outside) and not (only_output and node not in self._liveness.kept_outputs)

    def _is_activation(self, node: Node) -> bool:
        return isinstance(node.meta.get("val"), Tensor) and node.name not in self._graph.tensors

    def _same_labels(self, left: Node, right: Node) -> bool:
        if not isinstance(left.meta.get("val"), Tensor) or not isinstance(right.meta.get("val"), Tensor):
            return False
        ours, theirs = (outputs_of(self._structure.labels, node)[0] for node in (left, right))
        if list(map(length, ours)) != list(map(length, theirs)):
            return False
        pairs = [
            (self._structure.members(one), self._structure.members(other))
            for one, other in zip(ours, theirs, strict=True)
            if not isinstance(one, Fixed) and not isinstance(other, Fixed)
        ]
        same = all(np.array_equal(one, other) for one, other in pairs)
        return same and any(len(one) > 1 for one, _ in pairs)

    def _skips(self, found: Bypass, moved: Collection[Node]) -> bool:
        """A path leads from the exit back to the entry that computes nothing with weights, but adds."""
        pending, seen = [(found.exit, False)], set()
        while pending:
            node, added = pending.pop()
            if node is found.entry and added:
                return True
            if (node, added) in seen or node not in moved:
                continue
            seen.add((node, added))
            pending.extend((source, added or adds) for source, adds in _carried(node, moved))
        return False

    def _branch(self, node: Node) -> Bypass | None:
        terms = _terms(node)
        for skip, branch in (terms, terms[::-1]) if terms else ():
            if not self._same_labels(skip, branch) or not self._same_labels(skip, node):
                continue
            if not self._is_computed_from(branch, skip):
                continue
            found = Bypass("", "", skip, node)
            if self._saves(found):
                path, kind = self._last_weight(found, branch)
                return replace(found, path=path, kind=kind)
        return None

    def _is_computed_from(self, node: Node, source: Node) -> bool:
        first, pending, seen = self._place[source], [node], set()
        while pending:
            at = pending.pop()
            if at is source:
                return True
            if at not in seen and self._place[at] > first:
                seen.add(at)
                pending.extend(at.all_input_nodes)
        return False

    def _last_weight(self, found: Bypass, branch: Node) -> tuple[str, str]:
        """What a branch is called after: the module with its last weight, as it is called around it.

        A weight that lies there itself gives its own name.
        """
        own = [name for name in self.frees(found) if name in self._graph.trainable]
        pending, seen = deque([branch]), {found.entry}
        while pending:
            node = pending.popleft()
            name = self._graph.tensors.get(node.name)
            if name in own and self._graph.tensor(name).ndim > 1:
                called = calls_of(next(iter(node.users)))[len(calls_of(found.exit)) :]
                return called[0][1:] if called else (name, "")
            if node not in seen:
                seen.add(node)
                pending.extend(node.all_input_nodes)
        return own[-1], ""

    def _saves(self, found: Bypass) -> bool:
        return any(name in self._graph.trainable for name in self.frees(found))


def _dependent(entry: Node, nodes: Iterable[Node]) -> set[Node]:
    """The nodes among ``nodes`` (in order) that are computed from ``entry``, and ``entry`` itself."""
    found = {entry}
    for node in nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


_ADDITIONS = frozenset(("aten.add",))
_CARRYING = (
    frozenset(elementwise.OPERATORS) | frozenset(normalization.OPERATORS) | frozenset(shape.OPERATORS)
) - _ADDITIONS


def _terms(node: Node) -> tuple[Node, Node] | None:
    """The two tensors that an addition adds index by index."""
    terms = [
        item for item in node.args if isinstance(item, Node) and isinstance(item.meta.get("val"), Tensor)
    ]
    if operator_name(node) not in _ADDITIONS or len(terms) != 2:
        return None
    shapes = {sizes(item.meta["val"]) for item in (node, *terms)}
    weighted = node.kwargs.get("alpha", 1) != 1
    return (terms[0], terms[1]) if len(shapes) == 1 and terms[0] is not terms[1] and not weighted else None


def _carried(node: Node, moved: Collection[Node]) -> Iterator[tuple[Node, bool]]:
    """The operands that an operator passes on as they are, but for factors; and whether it adds to them.

    A factor may depend on what was given only where it is one number for many (the factor of a norm): a
    gate is no residual connection.
    """
    operator = operator_name(node)
    given = [item for item in node.all_input_nodes if isinstance(item.meta.get("val"), Tensor)]
    if operator in _ADDITIONS:
        whole = [item for item in given if sizes(item.meta["val"]) == sizes(node.meta["val"])]
        depends = sum(item in moved for item in given)
        yield from ((item, depends > 1) for item in whole)
    elif operator == "getitem":
        yield given[0] if given else node.all_input_nodes[0], False
    elif operator in _CARRYING and given:
        tied = [item for item in given if item in moved]
        full = [item for item in tied if _numel(item) == max(map(_numel, tied))]
        if len(full) == 1:
            yield full[0], False


def _numel(node: Node) -> int:
    return int(np.prod(sizes(node.meta["val"]), dtype=np.int64))


def _ends(part: Bypass) -> tuple[Node, Node]:
    return part.entry, part.exit


def _list_of(path: str) -> str:
    """``layers`` for ``layers.3``; "" for what has no number."""
    holder, _, name = path.rpartition(".")
    return holder if name.isdecimal() else ""


def _kind(module: _Module) -> tuple[str, str]:
    return _list_of(module.path), module.kind
