"""Normalisation: labels pass; where a norm is computed over them, zeroing is not removing."""

from __future__ import annotations

from prunekit.graph.atoms import Dims, Fixed
from prunekit.graph.call import Call
from prunekit.graph.change import Rewriting
from prunekit.graph.operator import Operator
from prunekit.graph.rules.elementwise import broadcast

OVER = "it is normalised over this dimension, so zeros in it change what remains"


def batch_norm(call: Call) -> Dims:
    """Statistics per channel (dimension 1), scale and shift per channel."""
    own = call.dims("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        for dim in call.dims(name):
            call.unify(own[1], dim)
    return own


def statistics_by_mode(change: Rewriting) -> None:
    """In training mode a norm that tracks running statistics uses its input's.

    One that did so when it was traced, in evaluation mode, does it in both.
    """
    argument = "training" if "training" in change.arguments else "use_input_stats"
    if not change.arguments[argument]:
        change.follow_mode(argument)


def instance_norm(call: Call) -> Dims:
    """As batch norm, but the statistics are those of each example over the dimensions behind the channels."""
    own = batch_norm(call)
    for dim in own[2:]:
        call.reduces(dim, (own[1],), OVER)
    return own


def layer_norm(call: Call) -> Dims:
    """Layer and RMS norm: over the last dimensions, with scale and shift of the same shape."""
    own = call.dims("input")
    count = len(call["normalized_shape"])
    lead, normalised = own[:-count], own[-count:]
    for name in ("weight", "bias"):
        for dim, parameter in zip(
            normalised, call.dims(name) if name in call.arguments else (), strict=False
        ):
            call.unify(dim, parameter)
    for dim in normalised:
        call.reduces(dim, lead, OVER)
    return own


def new_normalized_shape(change: Rewriting) -> None:
    """The last dimensions are as long as what is left of them."""
    given = change.arguments["normalized_shape"]
    change.set("normalized_shape", [change.count(dim) for dim in change.dims("input")[-len(given) :]])


def group_norm(call: Call) -> Dims:
    """Over the channels of each of ``num_groups`` blocks; scale and shift per channel."""
    own = call.dims("input")
    channels, groups = own[1], call["num_groups"]
    for name in ("weight", "bias"):
        for dim in call.dims(name):
            call.unify(channels, dim)
    for dim in own[2:]:
        call.reduces(dim, (channels,), OVER)
    if isinstance(channels, Fixed):
        return own
    size = len(channels) // groups
    if groups == 1:
        call.reduces(channels, (), OVER)
    elif size > 1:
        inner, outer = call.atoms.fresh(size), call.group_axis(groups)
        call.atoms.product(channels, (outer, inner))
        call.reduces(inner, (outer,), OVER)
    return own


def new_groups(change: Rewriting) -> None:
    """The groups that still have a channel."""
    change.set("num_groups", change.blocks(change.dims("input")[1], change.arguments["num_groups"]))


def softmax(call: Call) -> Dims:
    """Over one dimension."""
    own = call.dims("self")
    over = call["dim"] % len(own)
    call.reduces(own[over], [dim for axis, dim in enumerate(own) if axis != over], OVER)
    return own


def weight_norm(call: Call) -> Dims | tuple[Dims, ...]:
    """``v * g / |v|``, the norm taken over all dimensions of ``v`` but one."""
    own, scale = call.dims("v"), call.dims("g")
    kept = call["dim"] % len(own)
    for axis, dim in enumerate(own):
        if axis == kept:
            call.unify(dim, scale[axis])
            call.atoms.mark_not_mask_equivalent(dim, call.reason("a direction of zeros has no norm"))
        else:
            call.reduces(dim, (own[kept],), OVER)
    if isinstance(call.node.meta["val"], tuple | list):
        return own, tuple(scale)
    return own


def cosine_similarity(call: Call) -> Dims:
    """The product of two tensors over one dimension, divided by their norms."""
    joined = broadcast(call, [call.dims("x1"), call.dims("x2")])
    over = call["dim"] % len(joined)
    rest = [dim for axis, dim in enumerate(joined) if axis != over]
    call.reduces(joined[over], rest, OVER)
    return tuple(rest)


OPERATORS: dict[str, Operator] = {
    "aten.batch_norm": Operator(batch_norm, statistics_by_mode),
    "aten.instance_norm": Operator(instance_norm, statistics_by_mode),
    "aten.layer_norm": Operator(layer_norm, new_normalized_shape),
    "aten.rms_norm": Operator(layer_norm, new_normalized_shape),
    "aten.group_norm": Operator(group_norm, new_groups),
    "aten.softmax": Operator(softmax),
    "aten._softmax": Operator(softmax),
    "aten.log_softmax": Operator(softmax),
    "aten._log_softmax": Operator(softmax),
    "aten._weight_norm": Operator(weight_norm),
    "aten._weight_norm_interface": Operator(weight_norm),
    "aten.cosine_similarity": Operator(cosine_similarity),
}
