"""The pruned graph: the same operators, with every shape constant recomputed from the labels.

It is the specification of removal: whatever form the user gets must compute what this graph computes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunekit.graph.change import Change, Rewriting
from prunekit.graph.groups import Groups
from prunekit.graph.nodes import operator_name
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
    for node in list(graph.nodes):
        operator = OPERATORS.get(operator_name(node)) if node.op == "call_function" else None
        if operator is None or operator.rewrite is None or node.name not in source_by_name:
            continue
        rewriting = Rewriting(groups, keep, source_by_name[node.name], node)
        operator.rewrite(rewriting)
        changes.extend(rewriting.changes)
    signature = groups.graph.program.graph_signature
    module = as_module(
        graph,
        lambda name: tensors[name] if name in tensors else attribute(template, name),
        saved=set(signature.buffers) - set(signature.non_persistent_buffers),
    )
    module.eval()
    return module, changes
