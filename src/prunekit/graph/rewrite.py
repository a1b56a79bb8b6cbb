"""The pruned graph: the same operators, with every shape constant recomputed from the labels.

It is the specification of removal: whatever form the user gets must compute what this graph computes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from prunekit.graph.atoms import Dim, Fixed
from prunekit.graph.constants import renumbered
from prunekit.graph.groups import Groups
from prunekit.graph.label import bind, operator_name, sizes
from prunekit.types import BoolArray, KeepMask


@dataclass(frozen=True)
class Change:
    """One constant that a narrower model needs changed.

    Attributes:
        node: the operator's node in the traced graph.
        argument: its name in the operator's schema.
        old: its value in the dense model.
        new: its value in the pruned one.
    """

    node: Node
    argument: str
    old: Any
    new: Any


def rewrite(
    groups: Groups, keep: KeepMask, tensors: Mapping[str, Tensor]
) -> tuple[PrunedGraph, list[Change]]:
    """The pruned graph as a module that takes and gives what the model does, and what changed in it.

    Args:
        groups: of the dense model.
        keep: by group name, ``[units]`` bool.
        tensors: the narrowed parameters, buffers and constants by name.

    Returns:
        A module with the original parameter names, in evaluation mode, whose ``train()`` reaches batch
        normalisation and dropout; and every changed constant.
    """
    keep = groups.tied(keep)
    template = groups.graph.program.module(check_guards=False)
    source_by_name = {node.name: node for node in groups.graph.nodes if node.op == "call_function"}
    graph = _copy(template.graph)
    changes: list[Change] = []
    switches: list[Node] = []
    held: dict[str, Tensor] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.name not in source_by_name:
            continue
        rewriting = _Rewriting(groups, keep, source_by_name[node.name], node)
        step = REWRITES.get(operator_name(node))
        if step is not None:
            step(rewriting)
            changes.extend(rewriting.changes)
            held.update(rewriting.held)
        if operator_name(node) in _TRAINING_ARGUMENT:
            switches.append(node)
    root = _Root()
    for node in graph.nodes:
        if node.op == "get_attr":
            value = held.get(node.target, tensors.get(node.target))
            _attach(root, node.target, _find(template, node.target) if value is None else value)
    module = PrunedGraph(root, graph, class_name="PrunedGraph")
    signature = groups.graph.program.graph_signature
    saved = set(signature.buffers) - set(signature.non_persistent_buffers)
    _leave_unsaved(module, set(dict(module.named_buffers())) - saved)
    _follow_training_mode(module, {node.name for node in switches})
    module.eval()
    return module, changes


class PrunedGraph(GraphModule):
    """The pruned graph as a module: original parameter names, the model's own inputs and outputs.

    ``train()`` reaches batch normalisation and dropout.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> PrunedGraph:
        root = _Root()
        for node in self.graph.nodes:
            if node.op == "get_attr" and node.target != "training":
                _attach(root, node.target, copy.deepcopy(_find(self, node.target), memo))
        twin = PrunedGraph(root, _copy(self.graph), class_name="PrunedGraph")
        unsaved = set(dict(self.named_buffers())) - set(self.state_dict())
        return _leave_unsaved(twin, unsaved).train(self.training)


def _leave_unsaved(module: PrunedGraph, names: set[str]) -> PrunedGraph:
    """Keep ``names`` out of the state dict, where the original model keeps them out."""
    for name in names:
        path, _, leaf = name.rpartition(".")
        module.get_submodule(path)._non_persistent_buffers_set.add(leaf)
    return module


def _copy(graph: torch.fx.Graph) -> torch.fx.Graph:
    twin = torch.fx.Graph()
    twin.output(twin.graph_copy(graph, {}))
    twin.set_codegen(graph._codegen)  # It says how inputs and outputs are nested, and never changes.
    return twin


class _Root(torch.nn.Module):
    """Holds the tensors that the graph reads, under their original names."""


def _attach(root: torch.nn.Module, path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for name in parents:
        if not hasattr(root, name):
            root.add_module(name, torch.nn.Module())
        root = getattr(root, name)
    if isinstance(value, torch.nn.Parameter):
        root.register_parameter(leaf, value)
    elif isinstance(value, Tensor):
        root.register_buffer(leaf, value)
    else:
        setattr(root, leaf, value)


def _find(module: torch.nn.Module, path: str) -> Any:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name)
    return found


_TRAINING_ARGUMENT = {
    "aten.batch_norm": "training",
    "aten.instance_norm": "use_input_stats",
    "aten.dropout": "train",
    "aten.feature_dropout": "train",
    "aten.alpha_dropout": "train",
}


def _follow_training_mode(module: GraphModule, names: set[str]) -> None:
    """Let batch norm and dropout read the module's own ``training`` flag instead of a constant."""
    for node in list(module.graph.nodes):
        argument = _TRAINING_ARGUMENT.get(operator_name(node)) if node.name in names else None
        if argument is None:
            continue
        if operator_name(node) in ("aten.batch_norm", "aten.instance_norm") and bind(node)[argument]:
            continue  # It was traced in evaluation mode, so it uses its input's statistics in both.
        with module.graph.inserting_before(node):
            flag = module.graph.create_node("get_attr", "training")
        _set(node, argument, flag)
    module.recompile()


def _set(node: Node, argument: str, value: Any) -> None:
    schema = node.target._schema.arguments  # pyright: ignore
    position = [item.name for item in schema].index(argument)
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(argument, value)


class _Rewriting:
    """One operator: its labels, what stays of them, and its constants to set."""

    def __init__(self, groups: Groups, keep: KeepMask, source: Node, node: Node) -> None:
        self.groups = groups
        self.keep = keep
        self.source = source
        self.node = node
        self.arguments = bind(source)
        self.changes: list[Change] = []
        self.held: dict[str, Tensor] = {}

    def dims(self, which: str) -> tuple[Dim, ...]:
        """The labels of a tensor argument."""
        return self.groups.labels_of(self.arguments[which])[0]

    def out(self, index: int = 0) -> tuple[Dim, ...]:
        """The labels of an output."""
        return self.groups.labels_of(self.source)[index]

    def outs(self) -> list[tuple[Dim, ...]]:
        """The labels of every output."""
        return self.groups.labels_of(self.source)

    def count(self, dim: Dim) -> int:
        """How many indices are left."""
        return self.groups.count(dim, self.keep)

    def kept(self, dim: Dim) -> BoolArray:
        """``[n]`` which indices are left."""
        return (
            np.ones(dim.size, dtype=np.bool_) if isinstance(dim, Fixed) else self.groups.kept(dim, self.keep)
        )

    def hold(self, value: Tensor) -> Node:
        """A node of the new graph that gives ``value``, which its module will hold."""
        name = f"{self.source.name}_positions"
        self.held[name] = value
        with self.node.graph.inserting_before(self.node):
            return self.node.graph.create_node("get_attr", name)

    def set(self, argument: str, value: Any) -> None:
        """Set a constant of the operator, if that changes it."""
        old = self.arguments.get(argument)
        if old != value:
            self.changes.append(Change(self.source, argument, old, value))
            # What the graph holds as nodes (open sizes) stays as it is in the copied graph.
            _set(self.node, argument, _translate(value, self.node.graph))


def _translate(value: Any, graph: torch.fx.Graph) -> Any:
    if isinstance(value, Node):
        return next(node for node in graph.nodes if node.name == value.name)
    return [_translate(item, graph) for item in value] if isinstance(value, list | tuple) else value


def _sizes(argument: str) -> Callable[[_Rewriting], None]:
    """``view``, ``expand``, ``zeros`` ...: one entry per output dimension."""

    def step(change: _Rewriting) -> None:
        given = list(change.arguments[argument])
        dims = change.out()
        offset = len(dims) - len(given)
        for axis, entry in enumerate(given):
            dim = dims[axis + offset]
            if isinstance(dim, Fixed) or entry == -1 or change.count(dim) == len(dim):
                continue
            given[axis] = -1 if isinstance(entry, Node) else change.count(dim)
        change.set(argument, given)

    return step


def _unflatten(change: _Rewriting) -> None:
    axis = change.arguments["dim"] % len(change.dims("self"))
    given = list(change.arguments["sizes"])
    for position, entry in enumerate(given):
        dim = change.out()[axis + position]
        if entry != -1 and not isinstance(dim, Fixed):
            given[position] = change.count(dim)
    change.set("sizes", given)


def _pieces(change: _Rewriting) -> None:
    """``split``, ``chunk`` and ``split_with_sizes``: other lengths, spelt out where they are not even."""
    axis = change.arguments["dim"] % len(change.dims("self"))
    lengths = [change.count(dims[axis]) for dims in change.outs()]
    before = [sizes(item)[axis] for item in change.source.meta["val"]]
    if lengths == before:
        return
    operator = operator_name(change.source)
    if operator == "aten.split_with_sizes":
        change.set("split_sizes", lengths)
    elif operator == "aten.split" and _even(lengths, lengths[0]):
        change.set("split_size", lengths[0])
    elif operator != "aten.chunk" or not _even(lengths, -(-sum(lengths) // len(lengths))):
        change.changes.append(Change(change.source, "split_sizes", before, lengths))
        change.node.target = torch.ops.aten.split_with_sizes.default
        change.node.args = (change.node.args[0], lengths, axis)
        change.node.kwargs = {}


def _even(lengths: list[int], step: int) -> bool:
    return all(length == step for length in lengths[:-1]) and lengths[-1] <= step


def _slice(change: _Rewriting) -> None:
    axis = change.arguments["dim"] % len(change.dims("self"))
    dim = change.dims("self")[axis]
    if isinstance(dim, Fixed) or change.count(dim) == len(dim):
        return
    kept, size = change.kept(dim), len(dim)
    start, stop, _ = slice(change.arguments["start"], change.arguments["end"]).indices(size)
    change.set("start", int(kept[:start].sum()))
    change.set("end", int(kept[:stop].sum()))


def _narrow(change: _Rewriting) -> None:
    axis = change.arguments["dim"] % len(change.dims("self"))
    dim = change.dims("self")[axis]
    if isinstance(dim, Fixed) or change.count(dim) == len(dim):
        return
    kept, start = change.kept(dim), change.arguments["start"]
    stop = start + change.arguments["length"]
    change.set("start", int(kept[:start].sum()))
    change.set("length", int(kept[start:stop].sum()))


def _repeat(argument: str) -> Callable[[_Rewriting], None]:
    """``repeat`` and ``tile``: a dimension of one that is repeated becomes as long as its labels say."""

    def step(change: _Rewriting) -> None:
        given, dims, own = list(change.arguments[argument]), change.out(), change.dims("self")
        behind = len(dims) - len(own)
        for axis, dim in enumerate(dims):
            source = own[axis - behind] if axis >= behind else None
            place = axis - (len(dims) - len(given))
            if isinstance(dim, Fixed) or place < 0 or (source is not None and not isinstance(source, Fixed)):
                continue
            given[place] = change.count(dim)
        change.set(argument, given)

    return step


def _squeeze(change: _Rewriting) -> None:
    """Without a list of dimensions, one that shrinks to a single index would go as well."""
    own = change.dims("self")
    if "dim" in change.arguments or all(isinstance(dim, Fixed) for dim in own):
        return
    single = [axis for axis, dim in enumerate(own) if isinstance(dim, Fixed) and dim.size == 1]
    change.node.target = torch.ops.aten.squeeze.dims
    change.node.args = (change.node.args[0], single)


def _tally(change: _Rewriting) -> None:
    dim = change.out()[0]
    if not isinstance(dim, Fixed):
        change.set("bins", change.count(dim))
        change.set("max", change.count(dim) - 1)


def _classes(change: _Rewriting) -> None:
    dim = change.out()[-1]
    if not isinstance(dim, Fixed):
        change.set("num_classes", change.count(dim))


def _blocks(tensor: str, axis: int, argument: str) -> Callable[[_Rewriting], None]:
    """The number of groups that still have an index in dimension ``axis`` of ``tensor``."""

    def step(change: _Rewriting) -> None:
        groups = change.arguments[argument]
        if groups == 1:
            return
        kept = change.kept(change.dims(tensor)[axis])
        change.set(argument, int(kept.reshape(groups, -1).any(axis=1).sum()))

    return step


def _normalized_shape(change: _Rewriting) -> None:
    given = change.arguments["normalized_shape"]
    change.set("normalized_shape", [change.count(dim) for dim in change.dims("input")[-len(given) :]])


def _pad(change: _Rewriting) -> None:
    amounts = list(change.arguments["pad"])
    own, out = change.dims("self"), change.out()
    for position in range(len(amounts) // 2):
        axis = len(own) - 1 - position
        before = amounts[2 * position]
        dim = own[axis]
        size = dim.size if isinstance(dim, Fixed) else len(dim)
        kept = change.kept(out[axis])
        if not isinstance(out[axis], Fixed):
            amounts[2 * position] = int(kept[:before].sum())
            amounts[2 * position + 1] = int(kept[before + size :].sum())
    change.set("pad", amounts)


def _attention_scale(change: _Rewriting) -> None:
    """The dense model's scale is part of what it computes; the default would follow the new width."""
    width = change.dims("query")[-1]
    if change.arguments.get("scale") is not None or isinstance(width, Fixed):
        return
    if change.count(width) != len(width):
        change.set("scale", len(width) ** -0.5)


def _positions(change: _Rewriting) -> None:
    """Constant positions that no buffer of their own holds, or that are spread along other dimensions."""
    lookup = next((found for found in change.groups.lookups if found.node is change.source), None)
    operator = operator_name(change.source)
    if lookup is None or (lookup.tensor is not None and operator in ("aten.index", "aten.index_select")):
        return
    kept = change.kept(lookup.into)
    if kept.all():
        return
    data, *before = change.node.all_input_nodes
    held = change.hold(torch.from_numpy(renumbered(lookup.positions, kept)).to(before[0].meta["val"].device))
    change.node.target = torch.ops.aten.index_select.default
    change.node.args, change.node.kwargs = (data, lookup.axis, held), {}
    while before:
        node = before.pop()
        if node.op == "call_function" and not node.users:
            before += node.all_input_nodes
            change.node.graph.erase_node(node)


def _select(change: _Rewriting) -> None:
    axis = change.arguments["dim"] % len(change.dims("self"))
    dim = change.dims("self")[axis]
    if isinstance(dim, Fixed) or change.count(dim) == len(dim):
        return
    kept, place = change.kept(dim), change.arguments["index"]
    change.set("index", int(kept[:place].sum()) if place >= 0 else -int(kept[place:].sum()))


REWRITES: dict[str, Callable[[_Rewriting], None]] = {
    "aten.view": _sizes("size"),
    "aten.reshape": _sizes("shape"),
    "aten._unsafe_view": _sizes("size"),
    "aten.expand": _sizes("size"),
    "aten.broadcast_to": _sizes("size"),
    "aten.zeros": _sizes("size"),
    "aten.ones": _sizes("size"),
    "aten.full": _sizes("size"),
    "aten.empty": _sizes("size"),
    "aten.new_zeros": _sizes("size"),
    "aten.new_ones": _sizes("size"),
    "aten.new_full": _sizes("size"),
    "aten.new_empty": _sizes("size"),
    "aten.unflatten": _unflatten,
    "aten.split": _pieces,
    "aten.chunk": _pieces,
    "aten.split_with_sizes": _pieces,
    "aten.unsafe_split": _pieces,
    "aten.unsafe_chunk": _pieces,
    "aten.unsafe_split_with_sizes": _pieces,
    "aten.tensor_split": _pieces,
    "aten.slice": _slice,
    "aten.select": _select,
    "aten.index": _positions,
    "aten.index_select": _positions,
    "aten.gather": _positions,
    "aten.take_along_dim": _positions,
    "aten.narrow": _narrow,
    "aten.repeat": _repeat("repeats"),
    "aten.tile": _repeat("dims"),
    "aten.squeeze": _squeeze,
    "aten.histc": _tally,
    "aten.one_hot": _classes,
    "aten.conv1d": _blocks("weight", 0, "groups"),
    "aten.conv2d": _blocks("weight", 0, "groups"),
    "aten.conv3d": _blocks("weight", 0, "groups"),
    "aten.conv_transpose1d": _blocks("weight", 0, "groups"),
    "aten.conv_transpose2d": _blocks("weight", 0, "groups"),
    "aten.conv_transpose3d": _blocks("weight", 0, "groups"),
    "aten.group_norm": _blocks("input", 1, "num_groups"),
    "aten.layer_norm": _normalized_shape,
    "aten.rms_norm": _normalized_shape,
    "aten.pad": _pad,
    "aten.constant_pad_nd": _pad,
    "aten.scaled_dot_product_attention": _attention_scale,
}
