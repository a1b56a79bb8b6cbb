"""Operators that work index by index, with broadcasting: inputs and output stand or fall together."""

from __future__ import annotations

from prunekit.graph.atoms import SINGLE, Dim, Dims, Fixed, length
from prunekit.graph.call import Call
from prunekit.graph.change import Rewriting
from prunekit.graph.operator import Operator


def broadcast(call: Call, operands: list[Dims]) -> Dims:
    """Unify dimension by dimension from the right; a dimension of one carries nothing."""
    rank = max(len(dims) for dims in operands)
    joined: list[Dim] = []
    for position in range(-rank, 0):
        present = [dims[position] for dims in operands if len(dims) >= -position]
        size = max(length(dim) for dim in present)
        meeting = [dim for dim in present if length(dim) == size > 1]
        joined.append(call.unify_all(meeting) if meeting else Fixed(size, SINGLE))
    return tuple(joined)


def elementwise(call: Call) -> Dims:
    """Every tensor among the arguments takes part."""
    return broadcast(call, [call.dims(node) for node in call.inputs])


def drop_by_mode(change: Rewriting) -> None:
    """Dropout drops in training mode."""
    change.follow_mode("train")


def add(call: Call) -> Dims:
    """A sum of activations that different operators produced makes a residual stream of their dimensions."""
    dims = elementwise(call)
    origins = {call.origins(node) for node in call.inputs if not call.is_static(node)}
    if len(origins) > 1:
        call.atoms.summed.extend(dim for dim in dims if not isinstance(dim, Fixed))
    return dims


def like_first(call: Call) -> Dims:
    """The output has the labels of the first tensor; other tensors, if any, are scalars."""
    return call.dims(call.inputs[0])


def copy_into(call: Call) -> Dims:
    """``copy_`` writes the second tensor over the first one."""
    target, source = call.inputs[:2]
    broadcast(call, [call.dims(target), call.dims(source)])
    return call.dims(target)


def prelu(call: Call) -> Dims:
    """``prelu(x, weight)``: the weight runs along dimension 1, whatever the rank of ``x``."""
    own = call.dims("self")
    (slope,) = call.dims("weight")
    if not isinstance(slope, Fixed):
        call.unify(own[1], slope)
    return own


UNARY = (
    "abs acos acosh asin asinh atan atanh bernoulli bitwise_not ceil celu clamp clamp_max clamp_min "
    "cos cosh deg2rad digamma elu erf erfc erfinv exp exp2 expm1 "
    "fill floor frac gelu hardshrink hardsigmoid hardswish hardtanh isfinite "
    "isinf isnan leaky_relu lgamma lift_fresh lift_fresh_copy log log10 log1p log2 log_sigmoid logical_not "
    "logit masked_fill mish nan_to_num neg negative positive rad2deg reciprocal relu relu6 round rrelu rsqrt "
    "resolve_conj resolve_neg conj _conj real imag angle polar complex "
    "selu sgn sigmoid sign silu sin sinc sinh softplus softshrink special_erf special_expit sqrt "
    "square tan tanh threshold trunc zero"
)

BINARY = (
    "addcdiv addcmul atan2 bitwise_and bitwise_or bitwise_xor copysign div divide eq floor_divide "
    "fmax fmin fmod ge greater greater_equal gt heaviside hypot le lerp less less_equal logaddexp "
    "logaddexp2 logical_and logical_or logical_xor lt maximum minimum mul multiply ne not_equal pow "
    "__and__ __or__ __xor__ __lshift__ __rshift__ __iand__ __ior__ __ixor__ "
    "remainder rsub sub subtract true_divide where xlogy"
)

MOVING = "alias clone contiguous detach"

DROPPING = "dropout feature_dropout alpha_dropout"

OPERATORS: dict[str, Operator] = {
    **{f"aten.{name}": Operator(elementwise) for name in (*UNARY.split(), *BINARY.split())},
    **{f"aten.{name}": Operator(elementwise, moves=True) for name in MOVING.split()},
    **{f"aten.{name}": Operator(elementwise, drop_by_mode) for name in DROPPING.split()},
    "aten.add": Operator(add),
    "aten.copy": Operator(copy_into),
    "aten.prelu": Operator(prelu),
    "aten.to": Operator(like_first, moves=True),
    "aten._to_copy": Operator(like_first, moves=True),
    "aten.type_as": Operator(like_first, moves=True),
    "aten.zeros_like": Operator(like_first),
    "aten.ones_like": Operator(like_first),
    "aten.full_like": Operator(like_first),
    "aten.empty_like": Operator(like_first),
    "aten.rand_like": Operator(like_first),
    "aten.randn_like": Operator(like_first),
}
