"""Operators that only rearrange: reshape, permute, expand, squeeze. Reshapes state products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunekit.graph.atoms import Dim, Fixed
from prunekit.graph.label import SINGLE, Call, Dims, Rule, sizes
from prunekit.graph.rules.elementwise import broadcast
from prunekit.types import IntArray


def reshape(call: Call) -> Dims:
    """Follow every index through the new shape (see :func:`_regroup`)."""
    source = call.inputs[0]
    before, after = sizes(source.meta["val"]), call.shape
    own = call.dims(source)
    out: list[Dim] = []
    for old, new in _aligned(before, after):
        out.extend(_regroup(call, own[old], after[new]))
    return tuple(out)


def _aligned(before: Sequence[int], after: Sequence[int]) -> list[tuple[slice, slice]]:
    """The smallest runs of neighbouring dimensions with equal products."""
    runs, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        start_i, start_j = i, j
        left, right = 1, 1
        if i < len(before):
            left, i = before[i], i + 1
        if j < len(after):
            right, j = after[j], j + 1
        while left != right:
            if (left < right and i < len(before)) or j >= len(after):
                left, i = left * before[i], i + 1
            else:
                right, j = right * after[j], j + 1
        runs.append((slice(start_i, i), slice(start_j, j)))
    return runs


def _regroup(call: Call, old: Dims, new: tuple[int, ...]) -> Dims:
    """Labels of one run of dimensions after it is reshaped.

    1. One dimension stays one: nothing happens.
    2. Nothing in it is labelled: nothing is labelled afterwards.
    3. Else it is merged into one array of labels (fresh, and a product, if several dimensions carry labels;
       dimensions that carry none repeat them) and split again along the new shape.
    """
    old = tuple(dim for dim in old if _size(dim) > 1)
    wide = [axis for axis, size in enumerate(new) if size > 1]
    if len(old) == 1 and len(wide) == 1:
        pieces: dict[int, Dim] = {wide[0]: old[0]}
    elif all(isinstance(dim, Fixed) for dim in old):
        reason = next((dim.reason for dim in old if isinstance(dim, Fixed)), SINGLE)
        pieces = {axis: Fixed(new[axis], reason) for axis in wide}
    else:
        pieces = dict(zip(wide, _split(call, _merge(call, old), [new[axis] for axis in wide]), strict=True))
    return tuple(pieces.get(axis, Fixed(1, SINGLE)) for axis in range(len(new)))


def _size(dim: Dim) -> int:
    return dim.size if isinstance(dim, Fixed) else len(dim)


def _merge(call: Call, dims: Dims) -> IntArray:
    labelled = [dim for dim in dims if not isinstance(dim, Fixed)]
    if len(labelled) == 1:
        core = labelled[0]
    else:
        core = call.atoms.fresh(int(np.prod([len(dim) for dim in labelled])))
        call.atoms.product(core, labelled)
    shape = [1 if isinstance(dim, Fixed) else len(dim) for dim in dims]
    return np.broadcast_to(core.reshape(shape), [_size(dim) for dim in dims]).ravel()


def _split(call: Call, merged: IntArray, new: Sequence[int]) -> list[Dim]:
    grid = merged.reshape(new)
    varying = [axis for axis in range(grid.ndim) if (grid != np.take(grid, [0], axis=axis)).any()]
    first = tuple(slice(None) if axis in varying else 0 for axis in range(grid.ndim))
    core = grid[first]
    pieces: list[Dim] = [call.fixed(size, "a dimension without labels was split off") for size in new]
    if len(varying) == 1:
        pieces[varying[0]] = core
        return pieces
    factors = [call.atoms.fresh(new[axis]) for axis in varying]
    call.atoms.product(np.ascontiguousarray(core), factors)
    for axis, factor in zip(varying, factors, strict=True):
        pieces[axis] = factor
    return pieces


def permute(call: Call) -> Dims:
    """Dimensions in another order."""
    own = call.dims("self")
    return tuple(own[axis] for axis in call["dims"])


def transpose(call: Call) -> Dims:
    """Two dimensions swapped; ``t`` swaps the only two."""
    own = list(call.dims("self"))
    if len(own) < 2:
        return tuple(own)
    one, other = (
        (0, 1) if call.operator == "aten.t" else (call.arguments.get("dim0"), call.arguments.get("dim1"))
    )
    if one is None or other is None:
        one, other = call.arguments["axis0"], call.arguments["axis1"]
    own[one], own[other] = own[other], own[one]
    return tuple(own)


def reverse_dims(call: Call) -> Dims:
    """``numpy_T``: all dimensions in reverse."""
    return call.dims("self")[::-1]


def squeeze(call: Call) -> Dims:
    """Dimensions of size one dropped."""
    own = call.dims("self")
    given = call["dim"] if "dim" in call.arguments else None
    chosen = (
        range(len(own))
        if given is None
        else [axis % len(own) for axis in (given if isinstance(given, list) else [given])]
    )
    return tuple(dim for axis, dim in enumerate(own) if not (axis in chosen and _size(dim) == 1))


def unsqueeze(call: Call) -> Dims:
    """A dimension of size one added."""
    own = list(call.dims("self"))
    own.insert(call["dim"] % (len(own) + 1), Fixed(1, SINGLE))
    return tuple(own)


def expand(call: Call) -> Dims:
    """Dimensions of one repeated: a repeated dimension is free, until something fixes it."""
    own, shape = call.dims(call.inputs[0]), call.shape
    own = (*(Fixed(1, SINGLE) for _ in range(len(shape) - len(own))), *own)
    if call.operator == "aten.expand_as":
        return broadcast(call, [own, call.dims("other")])
    symbolic = [not isinstance(size, int) for size in call.node.meta["val"].shape]
    return tuple(
        dim
        if _size(dim) == size
        else call.fixed(size, "it is expanded to the batch size")
        if is_open
        else call.atoms.fresh(size)
        for dim, size, is_open in zip(own, shape, symbolic, strict=True)
    )


RULES: dict[str, Rule] = {
    "aten.view": reshape,
    "aten.reshape": reshape,
    "aten._unsafe_view": reshape,
    "aten.flatten": reshape,
    "aten.unflatten": reshape,
    "aten.permute": permute,
    "aten.transpose": transpose,
    "aten.swapaxes": transpose,
    "aten.t": transpose,
    "aten.numpy_T": reverse_dims,
    "aten.squeeze": squeeze,
    "aten.unsqueeze": unsqueeze,
    "aten.expand": expand,
    "aten.expand_as": expand,
}
