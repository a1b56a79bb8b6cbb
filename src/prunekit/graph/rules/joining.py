"""Joining and cutting: cat, split, chunk, slice, select, pad. Index arithmetic on label arrays."""

from __future__ import annotations

import numpy as np
import torch

from prunekit.graph.atoms import SINGLE, Dim, Dims, Fixed, Reason, length
from prunekit.graph.call import Call
from prunekit.graph.change import Change, Rewriting
from prunekit.graph.nodes import operator_name, sizes
from prunekit.graph.operator import Operator


def cat(call: Call) -> Dims:
    """Labels one after the other along ``dim``; the other dimensions stand together."""
    parts = [call.dims(node) for node in call["tensors"]]
    parts = [
        part for part, node in zip(parts, call["tensors"], strict=True) if sizes(node.meta["val"]) != (0,)
    ]
    over = call["dim"] % len(parts[0])
    out: list[Dim] = []
    for axis in range(len(parts[0])):
        along = [part[axis] for part in parts]
        if axis != over:
            out.append(call.unify_all(along))
        elif all(isinstance(dim, Fixed) for dim in along):
            out.append(Fixed(call.shape[axis], _first_reason(along)))
        else:
            out.append(np.concatenate([call.atoms.labelled(dim) for dim in along]))
    return tuple(out)


def _first_reason(dims: list[Dim]) -> Reason:
    reasons = [dim.reason for dim in dims if isinstance(dim, Fixed)]
    return next((reason for reason in reasons if reason is not SINGLE), SINGLE)


def stack(call: Call) -> Dims:
    """A new dimension that counts the tensors."""
    nodes = call["tensors"]
    over = call["dim"] % len(call.shape)
    parts = [call.dims(node) for node in nodes]
    out = [call.unify_all([part[axis] for part in parts]) for axis in range(len(parts[0]))]
    out.insert(over, call.fixed(len(nodes), "each index is one of the stacked tensors"))
    return tuple(out)


def split(call: Call) -> tuple[Dims, ...]:
    """Consecutive pieces; equal ones, as ``chunk`` gives, keep equal sizes."""
    own = call.dims("self")
    over = call["dim"] % len(own)
    lengths = [sizes(item)[over] for item in call.node.meta["val"]]
    pieces = _cut(call, own[over], lengths)
    if len(set(lengths)) == 1 and call.operator in ("aten.split", "aten.chunk"):
        call.atoms.mark_balanced([piece for piece in pieces if not isinstance(piece, Fixed)])
    return tuple((*own[:over], piece, *own[over + 1 :]) for piece in pieces)


def new_lengths(change: Rewriting) -> None:
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


def _cut(call: Call, dim: Dim, lengths: list[int]) -> list[Dim]:
    if isinstance(dim, Fixed):
        return [Fixed(length, dim.reason) for length in lengths]
    starts = np.cumsum([0, *lengths])
    return [
        dim[start : start + length] if length > 1 else _lone(call, dim[start : start + 1])
        for start, length in zip(starts, lengths, strict=False)
    ]


def _lone(call: Call, dim: np.ndarray) -> Fixed:
    """A piece of one index would lose its label; what it came from has to stay."""
    call.freeze([dim], "a single index of it is used on its own")
    return Fixed(len(dim), SINGLE)


def glu(call: Call) -> Dims:
    """``first_half * sigmoid(second_half)``: the halves stand together."""
    own = call.dims("self")
    over = call["dim"] % len(own)
    half = call.shape[over]
    first, second = _cut(call, own[over], [half, half])
    if isinstance(own[over], Fixed):
        return (*own[:over], first, *own[over + 1 :])
    return (*own[:over], call.unify(first, second), *own[over + 1 :])


def unbind(call: Call) -> tuple[Dims, ...]:
    """Every index of one dimension on its own."""
    own = call.dims("self")
    over = call["dim"] % len(own)
    call.freeze([own[over]], "each index of it is used on its own")
    rest = (*own[:over], *own[over + 1 :])
    return tuple(rest for _ in call.node.meta["val"])


def select(call: Call) -> Dims:
    """One index of one dimension, which has to stay; the others may go before and behind it."""
    own = call.dims("self")
    over = call["dim"] % len(own)
    dim, place = own[over], call.arguments["index"]
    if not isinstance(place, int):
        call.freeze([dim], "one index of it is selected by a position that is computed")
    elif not isinstance(dim, Fixed):
        rest = np.delete(dim, place) if call.is_static("self") else dim[:0]
        call.freeze([rest], "these inputs never read it")
        call.freeze([dim[[place]]], "this index of it is selected by its position")
    return (*own[:over], *own[over + 1 :])


def new_index(change: Rewriting) -> None:
    """``select``: its index among those that are left, from the end where it was given so."""
    axis = change.arguments["dim"] % len(change.dims("self"))
    dim = change.dims("self")[axis]
    if isinstance(dim, Fixed) or change.count(dim) == len(dim):
        return
    kept, place = change.kept(dim), change.arguments["index"]
    change.set("index", int(kept[:place].sum()) if place >= 0 else -int(kept[place:].sum()))


def narrow(call: Call) -> Dims:
    """``length`` indices from ``start``."""
    start = call["start"]
    return _window(call, slice(start, start + call["length"]) if isinstance(start, int) else None)


def slice_(call: Call) -> Dims:
    """``x[start:end:step]`` along one dimension."""
    return _window(call, slice(call["start"], call["end"], call["step"]))


def new_ends(change: Rewriting) -> None:
    """``slice``: as many indices fewer as went in front of and inside the window."""
    axis = change.arguments["dim"] % len(change.dims("self"))
    dim = change.dims("self")[axis]
    if isinstance(dim, Fixed) or change.count(dim) == len(dim):
        return
    kept, size = change.kept(dim), len(dim)
    start, stop, _ = slice(change.arguments["start"], change.arguments["end"]).indices(size)
    change.set("start", int(kept[:start].sum()))
    change.set("end", int(kept[:stop].sum()))


def new_length(change: Rewriting) -> None:
    """``narrow``: as :func:`new_ends`."""
    axis = change.arguments["dim"] % len(change.dims("self"))
    dim = change.dims("self")[axis]
    if isinstance(dim, Fixed) or change.count(dim) == len(dim):
        return
    kept, start = change.kept(dim), change.arguments["start"]
    stop = start + change.arguments["length"]
    change.set("start", int(kept[:start].sum()))
    change.set("length", int(kept[start:stop].sum()))


def _window(call: Call, window: slice | None) -> Dims:
    own = call.dims("self")
    over = call["dim"] % len(own)
    dim, size = own[over], call.shape[over]
    if isinstance(dim, Fixed):
        piece: Dim = Fixed(size, dim.reason)
    elif size == len(dim):
        piece = dim
    elif window is None or window.step not in (None, 1):
        call.freeze([dim], "every so-many-th index of it is taken")
        piece = call.fixed(size, "every so-many-th index of a dimension")
    else:
        taken = dim[window]
        if call.is_static("self"):
            call.freeze([np.delete(dim, np.arange(len(dim))[window])], "these inputs never read it")
        piece = taken if size > 1 else _lone(call, taken)
    return (*own[:over], piece, *own[over + 1 :])


def pad(call: Call) -> Dims | None:
    """Constant padding: the new indices come with labels of their own."""
    own = list(call.dims("self"))
    amounts = call["pad"]
    if call.operator == "aten.pad" and call["mode"] != "constant":
        axes = len(amounts) // 2
        call.freeze(own[-axes:], "it is padded with copies of itself")
        return (*own[:-axes], *(call.fixed(size, "a padded dimension") for size in call.shape[-axes:]))
    for position in range(len(amounts) // 2):
        before, after = amounts[2 * position : 2 * position + 2]
        axis = len(own) - 1 - position
        dim, size = own[axis], call.shape[axis]
        if before == after == 0:
            continue
        if isinstance(dim, Fixed):
            own[axis] = Fixed(size, dim.reason)
        elif before < 0 or after < 0:
            call.freeze([dim], "it is cropped by a negative padding")
            own[axis] = call.fixed(size, "a padded dimension")
        else:
            own[axis] = np.concatenate([call.atoms.fresh(before), dim, call.atoms.fresh(after)])
    return tuple(own)


def new_padding(change: Rewriting) -> None:
    """The new indices that are left in front and behind."""
    amounts = list(change.arguments["pad"])
    own, out = change.dims("self"), change.out()
    for position in range(len(amounts) // 2):
        axis = len(own) - 1 - position
        before = amounts[2 * position]
        dim = own[axis]
        size = length(dim)
        kept = change.kept(out[axis])
        if not isinstance(out[axis], Fixed):
            amounts[2 * position] = int(kept[:before].sum())
            amounts[2 * position + 1] = int(kept[before + size :].sum())
    change.set("pad", amounts)


def flip(call: Call) -> Dims:
    """Dimensions read backwards."""
    own = list(call.dims("self"))
    for axis in call["dims"]:
        dim = own[axis]
        if not isinstance(dim, Fixed):
            own[axis] = dim[::-1]
    return tuple(own)


OPERATORS: dict[str, Operator] = {
    "aten.cat": Operator(cat),
    "aten.concat": Operator(cat),
    "aten.concatenate": Operator(cat),
    "aten.stack": Operator(stack),
    "aten.split": Operator(split, new_lengths),
    "aten.chunk": Operator(split, new_lengths),
    "aten.unsafe_chunk": Operator(split, new_lengths),
    "aten.unsafe_split": Operator(split, new_lengths),
    "aten.unsafe_split_with_sizes": Operator(split, new_lengths),
    "aten.tensor_split": Operator(split, new_lengths),
    "aten.split_with_sizes": Operator(split, new_lengths),
    "aten.glu": Operator(glu),
    "aten.unbind": Operator(unbind),
    "aten.select": Operator(select, new_index, moves=True),
    "aten.slice": Operator(slice_, new_ends, moves=True),
    "aten.narrow": Operator(narrow, new_length),
    "aten.pad": Operator(pad, new_padding),
    "aten.constant_pad_nd": Operator(pad, new_padding),
    "aten.flip": Operator(flip),
}
