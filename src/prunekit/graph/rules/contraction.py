"""Operators that multiply and sum over a dimension: linear, matrix products, convolutions, attention."""

from __future__ import annotations

import numpy as np

from prunekit.graph.atoms import Dim, Dims, Fixed, length
from prunekit.graph.call import Call
from prunekit.graph.change import Rewriting
from prunekit.graph.operator import Operator
from prunekit.graph.rules.elementwise import broadcast
from prunekit.measure.macs import einsum_terms
from prunekit.types import Granularity


def linear(call: Call) -> Dims:
    """``x[..., in] @ weight[out, in].T + bias[out]``."""
    *lead, features = call.dims("input")
    out, contracted = call.dims("weight")
    call.contract(features, contracted, weight=contracted)
    call.produces(out)
    for bias in call.dims("bias"):
        call.unify(out, bias)
    return (*lead, out)


def matmul(call: Call) -> Dims | None:
    """``a[..., n, k] @ b[..., k, m]``, with vectors on either side and broadcast leading dimensions."""
    left_node, right_node = call.inputs[:2]
    left, right = call.dims(left_node), call.dims(right_node)
    left_static, right_static = call.is_static(left_node), call.is_static(right_node)
    inner_left, inner_right = left[-1], right[-2:][0]
    weight = inner_right if right_static else inner_left if left_static else None
    call.contract(inner_left, inner_right, weight=weight)
    rows = left[-2:-1] if len(left) > 1 else ()
    columns = right[-1:] if len(right) > 1 else ()
    for dim in (*(columns if right_static else ()), *(rows if left_static else ())):
        call.produces(dim)
    lead = broadcast(call, [left[:-2], right[:-2]]) if max(len(left), len(right)) > 2 else ()
    if weight is None:
        call.kind(Granularity.HEAD, lead)
        call.kind(Granularity.HEAD_DIM, (inner_left, *columns))
    return (*lead, *rows, *columns)


def add_product(call: Call) -> Dims | None:
    """``addmm`` and ``baddbmm``: a matrix product plus a broadcast first argument."""
    added, left_node, right_node = call.inputs[:3]
    left, right = call.dims(left_node), call.dims(right_node)
    right_static = call.is_static(right_node)
    *lead_left, rows, inner_left = left
    *lead_right, inner_right, columns = right
    weight = inner_right if right_static else inner_left if call.is_static(left_node) else None
    call.contract(inner_left, inner_right, weight=weight)
    if right_static:
        call.produces(columns)
    lead = broadcast(call, [tuple(lead_left), tuple(lead_right)]) if lead_left else ()
    return broadcast(call, [(*lead, rows, columns), call.dims(added)])


def convolution(call: Call) -> Dims:
    """``x[batch?, in, *space]`` with ``weight[out, in / groups, *kernel]``."""
    out, per_group, *kernel = call.dims("weight")
    spatial = len(kernel)
    call.freeze(kernel, "the extent of a convolution kernel keeps its size", obvious=True)
    channels = call.dims("input")[-spatial - 1]
    _grouped(call, channels, per_group, call["groups"], contracted=True)
    _grouped(call, out, None, call["groups"], contracted=False)
    return _convolved(call, out, spatial)


def transposed_convolution(call: Call) -> Dims:
    """``x[batch?, in, *space]`` with ``weight[in, out / groups, *kernel]``."""
    contracted, per_group, *kernel = call.dims("weight")
    spatial = len(kernel)
    call.freeze(kernel, "the extent of a convolution kernel keeps its size", obvious=True)
    channels = call.dims("input")[-spatial - 1]
    call.contract(channels, contracted, weight=contracted)
    groups = call["groups"]
    if groups == 1:
        return _convolved(call, per_group, spatial)
    _grouped(call, contracted, None, groups, contracted=True)
    size = call.shape[-spatial - 1]
    out = call.atoms.fresh(size)
    call.produces(per_group)
    _state_groups(call, out, call.group_axis(groups), per_group, groups)
    return _convolved(call, out, spatial)


def new_groups(change: Rewriting) -> None:
    """The groups that still have an index in the first dimension of the weight."""
    change.set("groups", change.blocks(change.dims("weight")[0], change.arguments["groups"]))


def _convolved(call: Call, out: Dim, spatial: int) -> Dims:
    call.produces(out)
    if not isinstance(out, Fixed):
        call.atoms.convolved.append(out)
    for bias in call.dims("bias"):
        call.unify(out, bias)
    space = call.dims("input")[-spatial:]
    call.freeze(space, "a convolution slides over it")
    lead = call.dims("input")[: -spatial - 1]
    fixed = (call.fixed(size, "a spatial dimension keeps its size") for size in call.shape[-spatial:])
    return (*lead, out, *fixed)


def _grouped(call: Call, dim: Dim, inside: Dim | None, groups: int, *, contracted: bool) -> None:
    """``dim`` is split into ``groups`` blocks that the whole call shares; ``inside`` lies within a block."""
    if groups == 1:
        if inside is not None:
            call.contract(dim, inside, weight=inside)
        return
    if contracted and inside is not None and not isinstance(inside, Fixed):
        call.atoms.consumed.append(inside)
    _state_groups(call, call.atoms.labelled(dim), call.group_axis(groups), inside, groups)


def _state_groups(call: Call, merged: np.ndarray, outer: np.ndarray, inside: Dim | None, groups: int) -> None:
    size = len(merged) // groups
    if size == 1:
        call.unify(merged, outer)
        return
    inner = call.atoms.fresh(size) if inside is None else call.atoms.labelled(inside)
    call.atoms.product(merged, (outer, inner))


def attention(call: Call) -> Dims | None:
    """``softmax(q[..., L, E] @ k[..., S, E].T) @ v[..., S, V]``; the heads lie in front.

    With ``enable_gqa`` each key and value head serves as many neighbouring query heads.
    """
    query, key, value = call.dims("query"), call.dims("key"), call.dims("value")
    call.contract(query[-1], key[-1], weight=None)
    positions = call.unify(key[-2], value[-2])
    call.reduces(positions, (*query[:-2], query[-2]), "attention normalises over it")
    if call["enable_gqa"]:
        shared = call.unify(key[-3], value[-3])
        call.kind(Granularity.HEAD, (shared,))
        lead = (
            *broadcast(call, [query[:-3], key[:-3], value[:-3]]),
            call.unify(query[-3], _repeated(call, shared, length(query[-3]))),
        )
    else:
        lead = broadcast(call, [query[:-2], key[:-2], value[:-2]])
    call.kind(Granularity.HEAD, lead)
    call.kind(Granularity.HEAD_DIM, (query[-1], value[-1]))
    mask = call.dims("attn_mask")
    if mask:
        broadcast(call, [(*lead, query[-2], positions), mask])
    return (*lead, query[-2], value[-1])


def old_scale(change: Rewriting) -> None:
    """The dense model's scale is part of what it computes; the default would follow the new width.

    How many query heads share a key head is nothing the operator is told; a class may state it all the same.
    """
    heads = [change.dims(which)[-3:-2] for which in ("query", "key")]
    if all(heads):
        before = [length(dims[0]) for dims in heads]
        after = [change.count(dims[0]) for dims in heads]
        change.note("query_heads_per_key_head", before[0] // before[1], after[0] // max(after[1], 1))
    width = change.dims("query")[-1]
    if change.arguments.get("scale") is not None or isinstance(width, Fixed):
        return
    if change.count(width) != len(width):
        change.set("scale", len(width) ** -0.5)


def _repeated(call: Call, dim: Dim, size: int) -> Dim:
    """``dim`` with each index repeated in place, every copy a unit of its own, up to ``size``."""
    count = length(dim)
    if count == size:
        return dim
    merged = call.atoms.fresh(size)
    call.atoms.product(merged, (call.atoms.labelled(dim), call.atoms.fresh(size // count)))
    return merged


def einsum(call: Call) -> Dims | None:
    """Any contraction: equal names stand together, names the output lacks are summed over."""
    nodes = call["tensors"]
    terms, output = einsum_terms(call["equation"], [len(call.dims(node)) for node in nodes])
    if any(len(set(term)) < len(term) for term in terms):
        call.refusal = "one tensor's diagonal is taken"
        return None
    found: dict[str, Dim] = {}
    static = [call.is_static(node) for node in nodes]
    for name in dict.fromkeys(name for term in terms for name in term):
        holding = [place for place, term in enumerate(terms) if name in term]
        dims = [(call.dims(nodes[place])[terms[place].index(name)], place) for place in holding]
        widest = max(length(dim) for dim, _ in dims)
        dims = [(dim, place) for dim, place in dims if length(dim) == widest]
        found[name] = call.unify_all([dim for dim, _ in dims])
        weights = [dim for dim, place in dims if static[place]]
        if name not in output and len(dims) > 1:
            call.contract(dims[0][0], dims[1][0], weight=weights[0] if weights else None)
        elif weights and len(holding) == 1:
            call.produces(weights[0])
    for name in found.keys() - set(output):
        if sum(name in term for term in terms) == 1:
            rest = [found[other] for other in output]
            call.reduces(found[name], rest, "one value is computed over all of this dimension")
    summed = [name for name in terms[0] if name not in output]
    if not any(static) and len(nodes) == 2 and summed:
        shared = [name for name in output if all(name in term for term in terms)]
        call.kind(Granularity.HEAD, [found[name] for name in shared])
        heads = any(not isinstance(found[name], Fixed) for name in shared)
        beside = [name for name in terms[1] if heads and name in output and name not in terms[0]]
        call.kind(Granularity.HEAD_DIM, [found[name] for name in (*summed, *beside)])
    return tuple(found[name] for name in output)


def grouped_product(call: Call) -> Dims:
    """``out[rows of group g] = x[rows of group g, k] @ w[g, k, m]``, the rows in the order of the groups."""
    rows, inner = call.dims("input")
    group, contracted, columns = call.dims("weight")
    (ends,) = call.dims("offs")
    if not call.is_tally("offs"):
        call.freeze([group, ends], "its groups lie at positions that are computed")
    call.unify(group, ends)
    call.contract(inner, contracted, weight=contracted if call.is_static("weight") else None)
    if call.is_static("weight"):
        call.produces(columns)
    return (rows, columns)


def bilinear(call: Call) -> Dims:
    """``x1[..., i] W[out, i, j] x2[..., j] + bias[out]``."""
    out, first, second = call.dims("weight")
    *lead, left = call.dims("input1")
    *other, right = call.dims("input2")
    call.contract(left, first, weight=first)
    call.contract(right, second, weight=second)
    call.produces(out)
    for bias in call.dims("bias"):
        call.unify(out, bias)
    return (*broadcast(call, [tuple(lead), tuple(other)]), out) if lead else (out,)


def outer(call: Call) -> Dims:
    """``x[i] y[j]``."""
    return (*call.dims("self"), *call.dims("vec2"))


OPERATORS: dict[str, Operator] = {
    "aten.linear": Operator(linear),
    "aten.matmul": Operator(matmul),
    "aten.mm": Operator(matmul),
    "aten.bmm": Operator(matmul),
    "aten.mv": Operator(matmul),
    "aten.dot": Operator(matmul),
    "aten.addmm": Operator(add_product),
    "aten.baddbmm": Operator(add_product),
    "aten.conv1d": Operator(convolution, new_groups),
    "aten.conv2d": Operator(convolution, new_groups),
    "aten.conv3d": Operator(convolution, new_groups),
    "aten.conv_transpose1d": Operator(transposed_convolution, new_groups),
    "aten.conv_transpose2d": Operator(transposed_convolution, new_groups),
    "aten.conv_transpose3d": Operator(transposed_convolution, new_groups),
    "aten.scaled_dot_product_attention": Operator(attention, old_scale),
    "aten.einsum": Operator(einsum),
    "aten.bilinear": Operator(bilinear),
    "transformers.grouped_mm_fallback": Operator(grouped_product),
    "aten.outer": Operator(outer),
    "aten.ger": Operator(outer),
    "aten.vdot": Operator(matmul),
}
