"""Operators that only rearrange: reshape, permute, expand, squeeze. Reshapes state products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.fx import Node

from prunekit.graph.atoms import SINGLE, Dim, Dims, Fixed, length
from prunekit.graph.call import Call
from prunekit.graph.change import Rewriting, Step
from prunekit.graph.nodes import sizes
from prunekit.graph.operator import Operator
from prunekit.graph.rules.elementwise import broadcast
from prunekit.types import IntArray


def reshape(call: Call) -> Dims:
    """Follow every index through the new shape (see :func:`regroup`)."""
    source = call.inputs[0]
    before, after = sizes(source.meta["val"]), call.shape
    own = call.dims(source)
    out: list[Dim] = []
    for old, new in _aligned(before, after):
        out.extend(regroup(call, own[old], after[new]))
    return tuple(out)


def new_sizes(argument: str) -> Step:
    """``view``, ``expand``, ``zeros`` ...: one entry per output dimension."""

    def step(change: Rewriting) -> None:
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


def new_factors(change: Rewriting) -> None:
    """``unflatten``: one entry per dimension that takes the place of the one."""
    axis = change.arguments["dim"] % len(change.dims("self"))
    given = list(change.arguments["sizes"])
    for position, entry in enumerate(given):
        dim = change.out()[axis + position]
        if entry != -1 and not isinstance(dim, Fixed):
            given[position] = change.count(dim)
    change.set("sizes", given)


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


def regroup(call: Call, old: Dims, new: tuple[int, ...]) -> Dims:
    """Labels of one run of dimensions after it is reshaped.

    1. One dimension stays one: nothing happens.
    2. Nothing in it is labelled: nothing is labelled afterwards.
    3. Else it is merged into one array of labels (fresh, and a product, if several dimensions carry labels;
       dimensions that carry none repeat them) and split again along the new shape.
    """
    old = tuple(dim for dim in old if length(dim) > 1)
    wide = [axis for axis, size in enumerate(new) if size > 1]
    if len(old) == 1 and len(wide) == 1:
        pieces: dict[int, Dim] = {wide[0]: old[0]}
    elif all(isinstance(dim, Fixed) for dim in old):
        reason = next((dim.reason for dim in old if isinstance(dim, Fixed)), SINGLE)
        pieces = {axis: Fixed(new[axis], reason) for axis in wide}
    else:
        pieces = dict(zip(wide, _split(call, _merge(call, old), [new[axis] for axis in wide]), strict=True))
    return tuple(pieces.get(axis, Fixed(1, SINGLE)) for axis in range(len(new)))


def _merge(call: Call, dims: Dims) -> IntArray:
    labelled = [dim for dim in dims if not isinstance(dim, Fixed)]
    if len(labelled) == 1:
        core = labelled[0]
    else:
        core = call.atoms.fresh(int(np.prod([len(dim) for dim in labelled])))
        call.atoms.product(core, labelled)
    shape = [1 if isinstance(dim, Fixed) else len(dim) for dim in dims]
    return np.broadcast_to(core.reshape(shape), [length(dim) for dim in dims]).ravel()


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


def transpose_last(call: Call) -> Dims:
    """``mT`` and ``adjoint``: the last two dimensions swapped."""
    *lead, rows, columns = call.dims("self")
    return (*lead, columns, rows)


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
    return tuple(dim for axis, dim in enumerate(own) if not (axis in chosen and length(dim) == 1))


def only_single(change: Rewriting) -> None:
    """Without a list of dimensions, one that shrinks to a single index would go as well."""
    own = change.dims("self")
    if "dim" in change.arguments or all(isinstance(dim, Fixed) for dim in own):
        return
    single = [axis for axis, dim in enumerate(own) if isinstance(dim, Fixed) and dim.size == 1]
    change.node.target = torch.ops.aten.squeeze.dims
    change.node.args = (change.node.args[0], single)


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
        if length(dim) == size
        else call.fixed(size, "it is expanded to the batch size")
        if is_open
        else call.atoms.fresh(size)
        for dim, size, is_open in zip(own, shape, symbolic, strict=True)
    )


def move_dims(call: Call) -> Dims:
    """``movedim``: some dimensions put in other places, the rest in their order."""
    own = call.dims("self")
    rank = len(own)
    given = [call["source"], call["destination"]]
    sources, places = ([axis % rank for axis in (one if isinstance(one, list) else [one])] for one in given)
    rest = iter([axis for axis in range(rank) if axis not in sources])
    order = [sources[places.index(place)] if place in places else next(rest) for place in range(rank)]
    return tuple(own[axis] for axis in order)


def roll(call: Call) -> Dims:
    """Dimensions read in a circle from another start; their indices keep their places."""
    own = list(call.dims("self"))
    axes = call["dims"]
    if not axes:
        call.freeze(own, "it is rolled together with all other dimensions")
        return tuple(call.fixed(size, "a rolled dimension") for size in call.shape)
    for axis in axes:
        call.freeze([own[axis]], "its indices are rolled by a number of places")
        own[axis] = call.fixed(call.shape[axis], "a rolled dimension")
    return tuple(own)


def repeat(call: Call) -> Dims:
    """``repeat`` and ``tile``: whole dimensions one after the other; one of size one is repeated freely."""
    own, shape = call.dims("self"), call.shape
    own = (*(Fixed(1, SINGLE) for _ in range(len(shape) - len(own))), *own)
    symbolic = [not isinstance(size, int) for size in call.node.meta["val"].shape]
    out: list[Dim] = []
    for dim, size, is_open in zip(own, shape, symbolic, strict=True):
        if length(dim) == size:
            out.append(dim)
        elif is_open:
            out.append(call.fixed(size, "it is repeated to the batch size"))
        elif length(dim) == 1:
            out.append(call.atoms.fresh(size))
        elif isinstance(dim, Fixed):
            out.append(Fixed(size, dim.reason))
        else:
            out.append(np.tile(dim, size // len(dim)))
    return tuple(out)


def new_repeats(argument: str) -> Step:
    """``repeat`` and ``tile``: a dimension of one that is repeated becomes as long as its labels say."""

    def step(change: Rewriting) -> None:
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


def repeat_interleave(call: Call) -> Dims | None:
    """Every index repeated in place, a fixed number of times; the copies go together."""
    own = list(call.dims("self")) if "self" in call.arguments else []
    times, axis = call["repeats"], call.arguments.get("dim")
    if not own or not isinstance(times, int) or axis is None:
        call.refusal = "how often an index is repeated depends on data"
        return None
    own[axis] = each_repeated(own[axis], call.shape[axis])
    return tuple(own)


def each_repeated(dim: Dim, size: int) -> Dim:
    """Every index repeated in place, as often as it takes to reach ``size``."""
    if isinstance(dim, Fixed):
        return Fixed(size, dim.reason)
    return np.repeat(dim, size // len(dim))


def to_complex(call: Call) -> Dims:
    """``view_as_complex``: the last dimension, real and imaginary part, disappears."""
    *own, pair = call.dims("self")
    call.freeze([pair], "its two indices are a real and an imaginary part")
    return tuple(own)


def to_real(call: Call) -> Dims:
    """``view_as_real``: a last dimension for the real and the imaginary part."""
    return (*call.dims("self"), call.fixed(2, "its two indices are a real and an imaginary part"))


OPERATORS: dict[str, Operator] = {
    "aten.view": Operator(reshape, new_sizes("size"), moves=True),
    "aten.reshape": Operator(reshape, new_sizes("shape"), moves=True),
    "aten._unsafe_view": Operator(reshape, new_sizes("size")),
    "aten.flatten": Operator(reshape, moves=True),
    "aten.unflatten": Operator(reshape, new_factors, moves=True),
    "aten.permute": Operator(permute, moves=True),
    "aten.transpose": Operator(transpose, moves=True),
    "aten.swapaxes": Operator(transpose),
    "aten.t": Operator(transpose, moves=True),
    "aten.numpy_T": Operator(reverse_dims),
    "aten.squeeze": Operator(squeeze, only_single, moves=True),
    "aten.unsqueeze": Operator(unsqueeze, moves=True),
    "aten.expand": Operator(expand, new_sizes("size"), moves=True),
    "aten.expand_as": Operator(expand),
    "aten.view_as": Operator(reshape),
    "aten.reshape_as": Operator(reshape),
    "aten.ravel": Operator(reshape),
    "aten.movedim": Operator(move_dims),
    "aten.moveaxis": Operator(move_dims),
    "aten.swapdims": Operator(transpose),
    "aten.mT": Operator(transpose_last),
    "aten.adjoint": Operator(transpose_last),
    "aten.roll": Operator(roll),
    "aten.repeat": Operator(repeat, new_repeats("repeats")),
    "aten.tile": Operator(repeat, new_repeats("dims")),
    "aten.repeat_interleave": Operator(repeat_interleave, moves=True),
    "aten.broadcast_to": Operator(expand, new_sizes("size")),
    "aten.view_as_complex": Operator(to_complex),
    "aten.view_as_real": Operator(to_real),
}
