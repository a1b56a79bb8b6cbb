"""Tables and new tensors: embedding, zeros, ones, full, ranges."""

from __future__ import annotations

from prunekit.graph.label import SINGLE, Call, Dims, Fixed, Rule


def embedding(call: Call) -> Dims:
    """``weight[rows, width]`` looked up by the indices' values."""
    rows, width = call.dims("weight")
    call.freeze([rows], "its rows are looked up by values in the data")
    call.produces(width)
    return (*call.dims("indices"), width)


def uniform(call: Call) -> Dims:
    """A new tensor with the same value everywhere: any of its static dimensions can be narrowed."""
    return tuple(
        call.fixed(size, "its size follows an open dimension")
        if not isinstance(own, int)
        else Fixed(1, SINGLE)
        if size == 1
        else call.atoms.fresh(size)
        for size, own in zip(call.shape, call.node.meta["val"].shape, strict=True)
    )


def positions(call: Call) -> Dims:
    """A new tensor whose values count positions."""
    return tuple(call.fixed(size, "its values are positions") for size in call.shape)


RULES: dict[str, Rule] = {
    "aten.embedding": embedding,
    "aten.zeros": uniform,
    "aten.ones": uniform,
    "aten.full": uniform,
    "aten.empty": uniform,
    "aten.new_zeros": uniform,
    "aten.new_ones": uniform,
    "aten.new_full": uniform,
    "aten.new_empty": uniform,
    "aten.arange": positions,
    "aten.linspace": positions,
    "aten.scalar_tensor": positions,
    "aten.eye": positions,
}
