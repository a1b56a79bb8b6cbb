"""What a measurement belongs to: a model with its weights and inputs; a target and a way of timing there."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunekit.deploy.quantization import quantizer_version
from prunekit.files import content_digest
from prunekit.graph import Graph, Groups
from prunekit.graph.nodes import operator_name
from prunekit.measure import Target, environment
from prunekit.measure.priority import is_real_time
from prunekit.surgery.tensors import digest_of
from prunekit.targeting.operator_times import SCHEMA

LITERALS = (bool, int, float, str, torch.dtype, torch.memory_format)
"""Settings of an operator that read the same in every process."""


def timing_digest(target: Target, *, real_time: bool = False) -> str:
    """What times on a target may be found again by, on this machine: 16 hexadecimal digits.

    Law: equal for two ways of timing only if they are on the same target (:meth:`Target.digest`) and both, or
    neither, run with real-time scheduling; what counts is whether the process may, not what was asked for.
    Times that another version of prunekit took in another way have another digest: they are taken anew.

    Args:
        target: on this machine.
        real_time: whether real-time scheduling is asked for.
    """
    way = ["real time" if is_real_time(real_time) else "ordinary", SCHEMA]
    if target.precision == "int8":
        way.append(quantizer_version())
    return content_digest(json.dumps([target.digest(environment()), *way]).encode())[:16]


def model_digest(model: nn.Module, groups: Groups) -> str:
    """What a model is, as it is measured: SHA-256, in hexadecimal.

    Law: equal for two models only if they have the same groups, the same tensors to the bit (names, dtypes,
    shapes and values), run the same operators with the same settings in the same order, and were traced with
    inputs of the same shapes; so it tells weights that were trained on from those before, which the
    fingerprint of the groups does not. It is the same in every process and on every device.

    Args:
        model: as it is now, on any device.
        groups: of the model, all of them or a selection.
    """
    graph = groups.graph
    content = [groups.fingerprint, _tensors(model, graph), _operators(graph), _inputs(graph)]
    return content_digest(json.dumps(content).encode())


def _tensors(model: nn.Module, graph: Graph) -> list[Any]:
    """Those that a state dict has, and those beside it that the graph reads."""
    found = {**graph.program.constants, **model.state_dict()}
    return [
        [name, str(tensor.dtype), list(tensor.shape), digest_of(tensor)]
        for name, tensor in sorted(found.items())
        if isinstance(tensor, Tensor)
    ]


def _operators(graph: Graph) -> list[Any]:
    """Each operator with its settings, in the order in which they run."""
    return [[operator_name(node), _settings(node)] for node in graph.nodes if node.op == "call_function"]


def _settings(node: fx.Node) -> list[str]:
    leaves = pytree.tree_leaves((node.args, node.kwargs))
    return [str(leaf) for leaf in leaves if isinstance(leaf, LITERALS)]


def _inputs(graph: Graph) -> list[Any]:
    """Of each leaf of the example inputs its dtype and shape, or its type where it is no tensor."""
    return [
        [str(leaf.dtype), list(leaf.shape)] if isinstance(leaf, Tensor) else [type(leaf).__name__]
        for leaf in pytree.tree_leaves((graph.args, graph.kwargs))
    ]
