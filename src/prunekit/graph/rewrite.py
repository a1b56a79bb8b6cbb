"""The pruned graph: the same operators, with every shape constant recomputed from the labels.

It is the specification of removal: whatever form the user gets must compute what this graph computes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunekit.graph.change import Change, Rewriting
from prunekit.graph.groups import Groups
from prunekit.graph.nodes import is_written_to, operator_name, sizes
from prunekit.graph.pruned_graph import PrunedGraph, as_module, attribute, copied
from prunekit.graph.rules import OPERATORS
from prunekit.types import KeepMask


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
    graph = copied(template.graph)
    changes: list[Change] = []
    tensors = dict(tensors)
    for node in list(graph.nodes):
        operator = OPERATORS.get(operator_name(node)) if node.op == "call_function" else None
        if operator is None or operator.rewrite is None or node.name not in source_by_name:
            continue
        rewriting = Rewriting(groups, keep, source_by_name[node.name], node)
        operator.rewrite(rewriting)
        changes.extend(rewriting.changes)
        tensors |= rewriting.held
    _leave_out(graph, groups, keep)
    signature = groups.graph.program.graph_signature
    module = as_module(
        graph,
        lambda name: tensors[name] if name in tensors else attribute(template, name),
        saved=set(signature.buffers) - set(signature.non_persistent_buffers),
    )
    module.eval()
    return module, changes


def _leave_out(graph: torch.fx.Graph, groups: Groups, keep: KeepMask) -> None:
    """Take the layers and branches out that go whole; a cache that one would have filled is empty."""
    bypassed = groups.bypassed(keep)
    if not bypassed:
        return
    gone = {node.name for node in groups.gone(keep)}
    by_name = {node.name: node for node in graph.nodes}
    lost, tied = groups.lost_tensors(keep), groups.graph.tied
    lost |= set(groups.left_unread({})) - set(groups.left_unread(keep))
    instead = {by_name[part.exit.name]: by_name[part.entry.name] for part in bypassed}
    for place in instead:
        replacement = instead[place]
        while replacement in instead:
            replacement = instead[replacement]
        if is_written_to(place):  # What the layer was given is still what others were given.
            with graph.inserting_after(place):
                replacement = graph.call_function(torch.ops.aten.clone.default, (replacement,))
        place.replace_all_uses_with(replacement)
    output = next(iter(reversed(graph.nodes)))
    for node in [node for node in output.all_input_nodes if node.name in gone]:
        with graph.inserting_before(output):
            rank = len(sizes(node.meta["val"]))
            empty = graph.call_function(torch.ops.aten.empty.memory_format, ([0] * max(rank, 1),))
        output.replace_input_with(node, empty)
    for node in reversed(list(graph.nodes)):
        dropped = node.target == "training" or tied.get(str(node.target), node.target) in lost
        left_out = node.name in gone and node.op != "placeholder"  # It is called as the dense model is.
        if not node.users and (left_out or (node.op == "get_attr" and dropped)):
            graph.erase_node(node)
