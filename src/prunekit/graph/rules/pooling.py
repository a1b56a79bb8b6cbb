"""Pooling, interpolation and reductions: what is pooled over stays, the rest passes."""

from __future__ import annotations

from prunekit.graph.atoms import SINGLE, Dim, Dims, Fixed
from prunekit.graph.call import Call, Rule
from prunekit.graph.nodes import operator_name, sizes
from prunekit.graph.operator import Operator
from prunekit.graph.rules.elementwise import elementwise


def _pool(spatial: int) -> Rule:
    def rule(call: Call) -> Dims | tuple[Dims, ...]:
        own = call.dims(call.inputs[0])
        call.freeze(own[-spatial:], "it is pooled or resized over this dimension")
        value = call.node.meta["val"]
        outputs = value if isinstance(value, tuple | list) else [value]
        labels = tuple(
            (*own[:-spatial], *(call.fixed(size, "a spatial dimension") for size in sizes(item)[-spatial:]))
            for item in outputs
        )
        return labels if isinstance(value, tuple | list) else labels[0]

    return rule


def reduction(call: Call) -> Dims | tuple[Dims, ...]:
    """Sum, mean, maximum, variance ... over some dimensions, or all.

    ``max`` of two tensors is element-wise; where the positions that ``max`` over a dimension also gives are
    used, they are positions in that dimension, so it keeps its indices.
    """
    if "other" in call.arguments:
        return elementwise(call)
    own = call.dims(call.inputs[0])
    given = call["dim"] if "dim" in call.arguments else None
    over = (
        {axis % len(own) for axis in (given if isinstance(given, list) else [given])}
        if given is not None and given != []
        else set(range(len(own)))
    )
    keep = bool(call["keepdim"]) if "keepdim" in call.arguments else False
    passing = [dim for axis, dim in enumerate(own) if axis not in over]
    if call.operator in _WITH_POSITIONS and any(
        operator_name(user) == "getitem" and user.args[1] == 1 for user in call.node.users
    ):
        call.freeze([own[axis] for axis in over], "positions in it are computed")
    for axis in over:
        call.reduces(own[axis], passing, "one value is computed over all of this dimension")
    out: list[Dim] = []
    for axis, dim in enumerate(own):
        if axis not in over:
            out.append(dim)
        elif keep:
            out.append(Fixed(1, SINGLE))
    value = call.node.meta["val"]
    return tuple(tuple(out) for _ in value) if isinstance(value, tuple | list) else tuple(out)


_WITH_POSITIONS = ("aten.max", "aten.min", "aten.median")

REDUCTIONS = (
    "all amax amin any linalg_vector_norm logsumexp max mean median min norm prod std std_mean sum var "
    "var_mean"
)

OPERATORS: dict[str, Operator] = (
    {f"aten.{name}": Operator(reduction) for name in REDUCTIONS.split()}
    | {
        f"aten.{name}{spatial}d": Operator(_pool(spatial))
        for spatial in (1, 2, 3)
        for name in (
            "avg_pool",
            "max_pool",
            "adaptive_avg_pool",
            "adaptive_max_pool",
            "upsample_nearest",
            "_upsample_nearest_exact",
            "reflection_pad",
            "replication_pad",
        )
    }
    | {
        "aten.max_pool1d_with_indices": Operator(_pool(1)),
        "aten.max_pool2d_with_indices": Operator(_pool(2)),
        "aten.max_pool3d_with_indices": Operator(_pool(3)),
        "aten.upsample_linear1d": Operator(_pool(1)),
        "aten.upsample_bilinear2d": Operator(_pool(2)),
        "aten._upsample_bilinear2d_aa": Operator(_pool(2)),
        "aten.upsample_bicubic2d": Operator(_pool(2)),
        "aten._upsample_bicubic2d_aa": Operator(_pool(2)),
        "aten.upsample_trilinear3d": Operator(_pool(3)),
    }
)
