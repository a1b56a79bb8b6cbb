"""Channels moved into space and back, and windows that slide over it: pixel shuffle, im2col, unfold."""

from __future__ import annotations

from prunekit.graph.atoms import Dims, length
from prunekit.graph.call import Call
from prunekit.graph.operator import Operator
from prunekit.graph.rules.shape import each_repeated, regroup


def pixel_shuffle(call: Call) -> Dims:
    """``[..., c * r * r, h, w]`` to ``[..., c, h * r, w * r]``."""
    *lead, channels, height, width = call.dims("self")
    call.freeze((height, width), "channels are moved into space")
    *_, count, new_height, new_width = call.shape
    kept, inside = regroup(call, (channels,), (count, length(channels) // count))
    call.freeze([inside], "it is moved into space")
    space = (call.fixed(size, "channels are moved into space") for size in (new_height, new_width))
    return (*lead, kept, *space)


def pixel_unshuffle(call: Call) -> Dims:
    """``[..., c, h * r, w * r]`` to ``[..., c * r * r, h, w]``: a channel goes with all its places."""
    *lead, channels, height, width = call.dims("self")
    call.freeze((height, width), "space is moved into channels")
    *_, count, new_height, new_width = call.shape
    space = [call.fixed(size, "space is moved into channels") for size in (new_height, new_width)]
    return (*lead, each_repeated(channels, count), *space)


def columns(call: Call) -> Dims:
    """``im2col``: ``[b?, c, h, w]`` to ``[b?, c * kernel, places]``."""
    *lead, channels, height, width = call.dims("self")
    call.freeze((height, width), "a window slides over it")
    *_, count, places = call.shape
    return (*lead, each_repeated(channels, count), call.fixed(places, "the places of a sliding window"))


def from_columns(call: Call) -> Dims:
    """``col2im``: ``[b?, c * kernel, places]`` to ``[b?, c, h, w]``."""
    *lead, merged, places = call.dims("self")
    call.freeze([places], "the places of a sliding window are added up")
    *_, count, height, width = call.shape
    kept, inside = regroup(call, (merged,), (count, length(merged) // count))
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
    size, groups = length(own[1]), call["groups"]
    outer, inner = regroup(call, (own[1],), (groups, size // groups))
    (own[1],) = regroup(call, (inner, outer), (size,))
    return tuple(own)


OPERATORS: dict[str, Operator] = {
    "aten.pixel_shuffle": Operator(pixel_shuffle),
    "aten.pixel_unshuffle": Operator(pixel_unshuffle),
    "aten.im2col": Operator(columns),
    "aten.col2im": Operator(from_columns),
    "aten.unfold": Operator(windows),
    "aten.channel_shuffle": Operator(channel_shuffle),
}
