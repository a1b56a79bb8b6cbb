"""Operators that only rearrange: reshape, permute, expand, squeeze. Reshapes state products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunekit.graph.atoms import SINGLE, Dim, Dims, Fixed
from prunekit.graph.call import Call, Rule
from prunekit.graph.nodes import sizes
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
        if _size(dim) == size:
            out.append(dim)
        elif is_open:
            out.append(call.fixed(size, "it is repeated to the batch size"))
        elif _size(dim) == 1:
            out.append(call.atoms.fresh(size))
        elif isinstance(dim, Fixed):
            out.append(Fixed(size, dim.reason))
        else:
            out.append(np.tile(dim, size // len(dim)))
    return tuple(out)


def repeat_interleave(call: Call) -> Dims | None:
    """Every index repeated in place, a fixed number of times; the copies go together."""
    own = list(call.dims("self")) if "self" in call.arguments else []
    times, axis = call["repeats"], call.arguments.get("dim")
    if not own or not isinstance(times, int) or axis is None:
        call.refusal = "how often an index is repeated depends on data"
        return None
    own[axis] = _each_repeated(own[axis], call.shape[axis])
    return tuple(own)


def _each_repeated(dim: Dim, size: int) -> Dim:
    if isinstance(dim, Fixed):
        return Fixed(size, dim.reason)
    return np.repeat(dim, size // len(dim))


def pixel_shuffle(call: Call) -> Dims:
    """``[..., c * r * r, h, w]`` to ``[..., c, h * r, w * r]``."""
    *lead, channels, height, width = call.dims("self")
    call.freeze((height, width), "channels are moved into space")
    *_, count, new_height, new_width = call.shape
    kept, inside = _regroup(call, (channels,), (count, _size(channels) // count))
    call.freeze([inside], "it is moved into space")
    space = (call.fixed(size, "channels are moved into space") for size in (new_height, new_width))
    return (*lead, kept, *space)


def pixel_unshuffle(call: Call) -> Dims:
    """``[..., c, h * r, w * r]`` to ``[..., c * r * r, h, w]``: a channel goes with all its places."""
    *lead, channels, height, width = call.dims("self")
    call.freeze((height, width), "space is moved into channels")
    *_, count, new_height, new_width = call.shape
    space = [call.fixed(size, "space is moved into channels") for size in (new_height, new_width)]
    return (*lead, _each_repeated(channels, count), *space)


def columns(call: Call) -> Dims:
    """``im2col``: ``[b?, c, h, w]`` to ``[b?, c * kernel, places]``."""
    *lead, channels, height, width = call.dims("self")
    call.freeze((height, width), "a window slides over it")
    *_, count, places = call.shape
    return (*lead, _each_repeated(channels, count), call.fixed(places, "the places of a sliding window"))


def from_columns(call: Call) -> Dims:
    """``col2im``: ``[b?, c * kernel, places]`` to ``[b?, c, h, w]``."""
    *lead, merged, places = call.dims("self")
    call.freeze([places], "the places of a sliding window are added up")
    *_, count, height, width = call.shape
    kept, inside = _regroup(call, (merged,), (count, _size(merged) // count))
    call.freeze([inside], "the inside of a sliding window")
    space = (call.fixed(size, "the places of a sliding window are added up") for size in (height, width))
    return (*lead, kept, *space)


def windows(call: Call) -> Dims:
    """``unfold``: windows of one dimension, their inside as a last dimension."""
    own = list(call.dims("self"))
    axis = call["dimension"] % len(own)
    call.freeze([own[axis]], "a window slides over it")
    own[axis] = call.fixed(call.shape[axis], "the places of a sliding window")
    return (*own, call.fixed(call["size"], "the inside of a sliding window"))


def channel_shuffle(call: Call) -> Dims:
    """``[b, g * c, ...]`` read as ``[b, c * g, ...]``."""
    own = list(call.dims("self"))
    size, groups = _size(own[1]), call["groups"]
    outer, inner = _regroup(call, (own[1],), (groups, size // groups))
    (own[1],) = _regroup(call, (inner, outer), (size,))
    return tuple(own)


def to_complex(call: Call) -> Dims:
    """``view_as_complex``: the last dimension, real and imaginary part, disappears."""
    *own, pair = call.dims("self")
    call.freeze([pair], "its two indices are a real and an imaginary part")
    return tuple(own)


def to_real(call: Call) -> Dims:
    """``view_as_real``: a last dimension for the real and the imaginary part."""
    return (*call.dims("self"), call.fixed(2, "its two indices are a real and an imaginary part"))


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
    "aten.view_as": reshape,
    "aten.reshape_as": reshape,
    "aten.ravel": reshape,
    "aten.movedim": move_dims,
    "aten.moveaxis": move_dims,
    "aten.swapdims": transpose,
    "aten.mT": transpose_last,
    "aten.adjoint": transpose_last,
    "aten.roll": roll,
    "aten.repeat": repeat,
    "aten.tile": repeat,
    "aten.repeat_interleave": repeat_interleave,
    "aten.broadcast_to": expand,
    "aten.pixel_shuffle": pixel_shuffle,
    "aten.pixel_unshuffle": pixel_unshuffle,
    "aten.im2col": columns,
    "aten.col2im": from_columns,
    "aten.unfold": windows,
    "aten.channel_shuffle": channel_shuffle,
    "aten.view_as_complex": to_complex,
    "aten.view_as_real": to_real,
}
