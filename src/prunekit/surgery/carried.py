"""Inputs that shrink with the model: the caches that a call was handed by the one before.

What such an input holds was computed by the weights that go, so where units go their part of it goes along:
the keys and values of a head that is no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from prunekit.graph import Graph, Groups
from prunekit.graph.atoms import Dims, Fixed
from prunekit.surgery.narrow import cut, permute_units, to_the_front
from prunekit.types import IntArray, KeepMask

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword inputs of one call."""


def graph_at(groups: Groups, keep: KeepMask) -> Graph:
    """The traced graph with its example inputs as the pruned model takes them.

    Args:
        groups: of the dense model.
        keep: by group name, ``[units]`` bool.
    """
    if not groups.inputs:
        return groups.graph
    args, kwargs = narrowed_inputs(groups, keep, (groups.graph.args, groups.graph.kwargs))
    return replace(groups.graph, args=args, kwargs=kwargs)


def narrowed_inputs(groups: Groups, keep: KeepMask, inputs: Inputs) -> Inputs:
    """Inputs of the dense model as the model that keeps ``keep`` takes them.

    Law: the pruned model gives on them what the masked model gives on the whole ones.

    A cache of a layer that goes whole is empty: no unit is left of what the layer computed, only the batch
    and the positions keep their sizes.

    Args:
        groups: of the dense model.
        keep: by group name, ``[units]`` bool.
        inputs: nested like the example inputs, with any number of examples.
    """
    masks = {name: mask for name, mask in keep.items() if mask.any() or groups.whole(name).is_depth}
    gone, tied = {node.name for node in groups.gone(masks)}, groups.tied(masks)

    def narrowed(name: str, dims: Dims, tensor: Tensor) -> Tensor:
        if name in gone:
            return _emptied(groups, dims, tensor)
        front = to_the_front(groups, tensor, masks, lambda group: groups.input_slices(group.name, name))
        return cut(groups, dims, front, tied).contiguous()

    return _each(groups, inputs, narrowed)


def permuted_inputs(groups: Groups, orders: Mapping[str, IntArray], inputs: Inputs) -> Inputs:
    """Inputs in which unit ``order[u]`` of each group lies in the place of unit ``u``.

    Args:
        groups: of the dense model.
        orders: by group name, ``[units]``, a permutation that moves units only within their block.
        inputs: nested like the example inputs.

    Raises:
        ShapeError: two units that change places have different numbers of indices.
    """

    def permuted(name: str, _: Dims, tensor: Tensor) -> Tensor:
        for group, order in orders.items():
            for part in groups.input_slices(group, name):
                tensor = permute_units(tensor, part, groups.whole(group), order)
        return tensor

    return _each(groups, inputs, permuted)


def _each(groups: Groups, inputs: Inputs, change: Callable[[str, Dims, Tensor], Tensor]) -> Inputs:
    """The inputs with each tensor that may shrink changed, given its placeholder and its labels."""
    leaves, spec = pytree.tree_flatten(inputs)
    for name, dims in groups.inputs.items():
        position = groups.graph.carried[name]
        leaves[position] = change(name, dims, leaves[position])
    return pytree.tree_unflatten(leaves, spec)


def _emptied(groups: Groups, dims: Dims, tensor: Tensor) -> Tensor:
    """Without any index of a dimension that weights compute."""
    for axis, dim in enumerate(dims):
        if not isinstance(dim, Fixed) and groups.is_computed(dim):
            tensor = tensor.narrow(axis, 0, 0)
    return tensor.contiguous()
