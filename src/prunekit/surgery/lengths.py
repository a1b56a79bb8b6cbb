"""The same model on longer sequences, so that a proof does not rest on the example's length."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.errors import TraceError
from prunekit.graph import Graph, Groups, find_groups, trace
from prunekit.surgery.compare import outputs
from prunekit.surgery.tensors import copied


def at_another_length(model: nn.Module, groups: Groups) -> tuple[Groups, int] | None:
    """The groups of the model on sequences one token longer, and that length.

    Sequences are the inputs of integers or booleans with two dimensions; the second one is their length. All
    of the commonest length grow by a copy of their first token.

    Returns:
        None where there are no such inputs, the model does not take longer ones, or other groups come out.
    """
    longer = _longer(groups.graph)
    if longer is None:
        return None
    args, kwargs, length = longer
    if not _runs(model, args, kwargs):
        return None
    try:
        found = find_groups(trace(model, args, kwargs, release=_released(groups.graph)))
    except TraceError:
        return None
    return (found, length) if found.fingerprint == groups.fingerprint else None


def _longer(graph: Graph) -> tuple[tuple, dict, int] | None:
    leaves, spec = pytree.tree_flatten((graph.args, graph.kwargs))
    lengths = Counter(leaf.shape[1] for leaf in leaves if _is_sequence(leaf))
    if not lengths:
        return None
    length = lengths.most_common(1)[0][0]
    grown = [
        torch.cat([leaf, leaf[:, :1]], dim=1) if _is_sequence(leaf) and leaf.shape[1] == length else leaf
        for leaf in leaves
    ]
    args, kwargs = pytree.tree_unflatten(grown, spec)
    return args, kwargs, length + 1


def _is_sequence(leaf: object) -> bool:
    return (
        isinstance(leaf, Tensor)
        and leaf.ndim == 2
        and leaf.shape[1] > 1
        and not (leaf.is_floating_point() or leaf.is_complex())
    )


def _runs(model: nn.Module, args: tuple, kwargs: dict) -> bool:
    """Whether the model takes these inputs, which a trace cannot tell: it computes no values to look up by.

    On the CPU, because an index out of range is an error there, and on a GPU the end of the process.
    """
    args, kwargs = pytree.tree_map(
        lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, (args, kwargs)
    )
    try:
        outputs(copied(model).cpu(), args, kwargs)
    except Exception:  # whatever the user's forward raises
        return False
    return True


def _released(graph: Graph) -> tuple[str, ...]:
    return tuple(glob_of(graph.outputs[position]) for position in sorted(graph.released))


def glob_of(path: str) -> str:
    """A pattern that matches exactly this path."""
    return "".join(f"[{character}]" if character in "[*?" else character for character in path)
