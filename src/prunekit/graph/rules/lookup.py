"""Looking up and writing by position, and new tensors: embedding, index, gather, scatter, zeros, ranges."""

from __future__ import annotations

import numpy as np
import torch
from torch.fx import Node

from prunekit.graph.atoms import SINGLE, Dim, Dims, Fixed
from prunekit.graph.call import Call
from prunekit.graph.change import Rewriting
from prunekit.graph.constants import Lookup, renumbered
from prunekit.graph.nodes import operator_name
from prunekit.graph.operator import Operator
from prunekit.graph.rules.elementwise import broadcast
from prunekit.graph.rules.shape import new_sizes


def embedding(call: Call) -> Dims:
    """``weight[rows, width]`` looked up by the indices' values."""
    rows, width = call.dims("weight")
    call.freeze([rows], "its rows are looked up by values in the data")
    call.produces(width)
    return (*call.dims("indices"), width)


def index(call: Call) -> Dims | None:
    """``x[..., indices, ...]``: what is looked up by indices is fixed, the other dimensions pass.

    The looked-up dimensions come where the first of them was, or in front if they are not neighbours.
    """
    own = call.dims("self")
    given = [*call["indices"], *[None] * (len(own) - len(call["indices"]))]
    looked_up = [axis for axis, which in enumerate(given) if which is not None]
    if any(given[axis].meta["val"].dtype == torch.bool for axis in looked_up):
        call.refusal = "it is selected by a mask that depends on data"
        return None
    if len(looked_up) == 1:
        (axis,) = looked_up
        chosen = _at_constants(call, axis, given[axis])
        if chosen is not None:
            return (*own[:axis], chosen, *own[axis + 1 :])
    for axis in looked_up:
        _look_up(call, own[axis], given[axis])
        call.freeze(call.dims(given[axis]), "its values look up positions")
    passing = [axis for axis, which in enumerate(given) if which is None]
    neighbours = looked_up[-1] - looked_up[0] == len(looked_up) - 1
    before = [own[axis] for axis in passing if neighbours and axis < looked_up[0]]
    after = [own[axis] for axis in passing if not neighbours or axis > looked_up[0]]
    if call.is_static("self"):
        for dim in (*before, *after):
            call.produces(dim)
    shape = call.shape[len(before) : len(call.shape) - len(after)]
    return (*before, *(call.fixed(size, "looked up by values") for size in shape), *after)


def index_select(call: Call) -> Dims:
    """``x.index_select(dim, indices)``."""
    own = list(call.dims("self"))
    axis = call["dim"] % len(own)
    chosen = _at_constants(call, axis, call["index"])
    if chosen is not None:
        return (*own[:axis], chosen, *own[axis + 1 :])
    _look_up(call, own[axis], call["index"])
    call.freeze(call.dims("index"), "its values look up positions")
    own[axis] = call.fixed(call.shape[axis], "looked up by values")
    return tuple(own)


def gather(call: Call) -> Dims:
    """``out[i, j] = x[i, index[i, j]]``: the other dimensions of both stand together."""
    own, chosen = call.dims("self"), call.dims("indices" if "indices" in call.arguments else "index")
    if call["dim"] is None or not own:
        call.freeze((*own, *chosen), "its values are looked up by position")
        return tuple(call.fixed(size, "looked up by values") for size in call.shape)
    axis = call["dim"] % len(own)
    positions = call["indices" if "indices" in call.arguments else "index"]
    if [size for place, size in enumerate(call.shape) if place != axis] == [
        _length(dim) for place, dim in enumerate(own) if place != axis
    ]:
        selected = _at_constants(call, axis, positions)
        if selected is not None:
            return (*own[:axis], selected, *own[axis + 1 :])
    _look_up(call, own[axis], positions)
    call.freeze([chosen[axis]], "its values look up positions")
    return _beside(call, axis, [chosen, own])


def scatter(call: Call) -> Dims:
    """``x[i, index[i, j]] = source[i, j]``: the dimension written to keeps its indices."""
    own, chosen = call.dims("self"), call.dims("index")
    if not own:
        return own
    axis = call["dim"] % len(own)
    name = next((name for name in ("src", "source") if name in call.arguments), None)
    tensors = [own, chosen, *([call.dims(name)] if name else [])]
    if len(chosen) < len(own):  # index_add and its kin take a list of positions
        tensors = [own, *([call.dims(name)] if name and len(call.dims(name)) == len(own) else [])]
        call.freeze(chosen, "its values are positions")
    call.freeze([dims[axis] for dims in tensors[1:]], "they are written to positions")
    _look_up(call, own[axis], call["index"])
    _beside(call, axis, tensors)
    return own


def _at_constants(call: Call, axis: int, positions: Node) -> Dim | None:
    """The labels that lie at constant positions of dimension ``axis``; None where there are none.

    The positions follow what they look up. A buffer that holds them for several lookups holds one order for
    all of them, so their dimensions stand together.
    """
    dim, is_gather = call.dims("self")[axis], call.operator in ("aten.gather", "aten.take_along_dim")
    if isinstance(dim, Fixed) or (len(call.dims(positions)) != 1 and not is_gather):
        return None
    found = call.constants.positions(positions, axis if is_gather else 0, len(dim))
    if found is None:
        return None
    sources = call.constants.sources(positions)
    for source in sources:
        call.freeze(call.dims(source), "its values are positions, and follow what they look up")
    call.freeze(call.dims(positions), "its values are positions, and follow what they look up")
    if call.is_static("self"):
        call.freeze([np.delete(dim, np.unique(found))], "these inputs never read it")
    tensor = call.constants.holder(positions, moved=is_gather)
    for other in call.lookups:
        if tensor is not None and other.tensor == tensor and other.into is not dim:
            if len(other.into) != len(dim):
                call.freeze(
                    [other.into, dim], "the same positions are looked up in a dimension of another size"
                )
                return None
            call.unify(other.into, dim)
    if len(found) == 1:
        call.freeze([dim[found]], "a single index of it is used on its own")
    call.lookups.append(Lookup(call.node, axis, tensor, found, dim, dict(sources.values())))
    return dim[found] if len(found) > 1 else Fixed(1, SINGLE)


def new_positions(change: Rewriting) -> None:
    """Constant positions that no buffer of their own holds, or that are spread along other dimensions."""
    lookup = change.lookup()
    if lookup is None or (lookup.tensor is not None and operator_name(change.source) in _READ_AS_THEY_ARE):
        return
    kept = change.kept(lookup.into)
    if kept.all():
        return
    data, *before = change.node.all_input_nodes
    held = change.hold(torch.from_numpy(renumbered(lookup.positions, kept)).to(before[0].meta["val"].device))
    change.node.target = torch.ops.aten.index_select.default
    change.node.args, change.node.kwargs = (data, lookup.axis, held), {}
    while before:
        node = before.pop()
        if node.op == "call_function" and not node.users:
            before += node.all_input_nodes
            change.node.graph.erase_node(node)


_READ_AS_THEY_ARE = ("aten.index", "aten.index_select")


def _look_up(call: Call, dim: Dim, positions: Node) -> None:
    """Indices of ``dim`` are read or written by position: it is frozen unless the positions point into it."""
    pointed = call.pointed(positions)
    size = dim.size if isinstance(dim, Fixed) else len(dim)
    if pointed is not None and not isinstance(pointed, Fixed) and len(pointed) == size:
        call.unify(dim, pointed)
    else:
        call.freeze([dim] if pointed is None else [dim, pointed], "its indices are looked up by values")


def _beside(call: Call, axis: int, tensors: list[Dims]) -> Dims:
    """All dimensions but ``axis`` stand together; where one tensor is shorter, it keeps its indices."""
    out: list[Dim] = []
    for place in range(len(tensors[0])):
        dims = [dims[place] for dims in tensors]
        size = call.shape[place]
        lengths = {dim.size if isinstance(dim, Fixed) else len(dim) for dim in dims}
        if place != axis and lengths == {size}:
            out.append(call.unify_all(dims))
        elif place == axis:
            out.append(call.fixed(size, "looked up by values") if size > 1 else Fixed(1, SINGLE))
        else:
            call.freeze(dims, "values are looked up at positions in it")
            out.append(call.fixed(size, "looked up by values") if size > 1 else Fixed(1, SINGLE))
    return tuple(out)


def index_put(call: Call) -> Dims | None:
    """``x[..., indices, ...] = values``."""
    own, values = call.dims("self"), call.dims("values")
    given = [*call["indices"], *[None] * (len(own) - len(call["indices"]))]
    places = [axis for axis, which in enumerate(given) if which is not None]
    if any(given[axis].meta["val"].dtype == torch.bool for axis in places):
        if len(places) == 1 and len(call.dims(given[places[0]])) == len(own) and not values:
            return broadcast(call, [own, call.dims(given[places[0]])])
        call.refusal = "it is selected by a mask that depends on data"
        return None
    call.freeze([own[axis] for axis in places], "values are written to positions in it")
    for axis in places:
        call.freeze(call.dims(given[axis]), "its values are positions")
    passing = [axis for axis in range(len(own)) if axis not in places]
    behind = [axis for axis in passing if axis > places[-1]]
    if len(values) >= len(behind) and behind:
        broadcast(call, [tuple(own[axis] for axis in behind), values[len(values) - len(behind) :]])
    call.freeze(values[: max(0, len(values) - len(behind))], "they are written to positions")
    call.freeze([own[axis] for axis in passing if axis < places[-1]], "values are written beside it")
    return own


def masked_scatter(call: Call) -> Dims:
    """Places where a mask holds take the values of ``source`` one after the other.

    Whole last dimensions are written wherever this is used (features at the places of their tokens), so the
    last dimensions stand together; the permutation law finds out where they are not.
    """
    own = broadcast(call, [call.dims("self"), call.dims("mask")])
    source = call.dims("source")
    if not own or not source or _length(own[-1]) != _length(source[-1]):
        call.freeze((*own, *source), "values are written where a mask says")
        return own
    call.freeze((*own[:-1], *source[:-1]), "values are written where a mask says")
    return (*own[:-1], call.unify(own[-1], source[-1]))


def _length(dim: Dim) -> int:
    return dim.size if isinstance(dim, Fixed) else len(dim)


def one_hot(call: Call) -> Dims:
    """A last dimension that counts the values."""
    pointed = call.pointed("self")
    if pointed is not None and not isinstance(pointed, Fixed) and len(pointed) == call.shape[-1]:
        return (*call.dims("self"), pointed)
    if pointed is not None:
        call.freeze([pointed], "its positions are values")
    return (*call.dims("self"), call.fixed(call.shape[-1], "its positions are values"))


def new_classes(change: Rewriting) -> None:
    """As many as are left of the dimension that the values point into."""
    dim = change.out()[-1]
    if not isinstance(dim, Fixed):
        change.set("num_classes", change.count(dim))


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


OPERATORS: dict[str, Operator] = {
    "aten.embedding": Operator(embedding),
    "aten.index": Operator(index, new_positions, moves=True),
    "aten.index_select": Operator(index_select, new_positions),
    "aten.gather": Operator(gather, new_positions, moves=True),
    "aten.take_along_dim": Operator(gather, new_positions),
    "aten.scatter": Operator(scatter),
    "aten.scatter_add": Operator(scatter),
    "aten.scatter_reduce": Operator(scatter),
    "aten.index_add": Operator(scatter),
    "aten.index_copy": Operator(scatter),
    "aten.index_fill": Operator(scatter),
    "aten.index_put": Operator(index_put),
    "aten.masked_scatter": Operator(masked_scatter),
    "aten.one_hot": Operator(one_hot, new_classes),
    "aten.rand": Operator(positions),
    "aten.randn": Operator(positions),
    "aten.hann_window": Operator(positions),
    "aten.zeros": Operator(uniform, new_sizes("size")),
    "aten.ones": Operator(uniform, new_sizes("size")),
    "aten.full": Operator(uniform, new_sizes("size")),
    "aten.empty": Operator(uniform, new_sizes("size")),
    "aten.new_zeros": Operator(uniform, new_sizes("size")),
    "aten.new_ones": Operator(uniform, new_sizes("size")),
    "aten.new_full": Operator(uniform, new_sizes("size")),
    "aten.new_empty": Operator(uniform, new_sizes("size")),
    "aten.arange": Operator(positions),
    "aten.linspace": Operator(positions),
    "aten.scalar_tensor": Operator(positions),
    "aten.eye": Operator(positions),
}
