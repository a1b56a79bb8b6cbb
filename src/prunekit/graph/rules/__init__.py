"""All that is known about operators, one file per family, in one closed table."""

from prunekit.graph import operator
from prunekit.graph.rules import (
    contraction,
    elementwise,
    joining,
    lookup,
    normalization,
    ordering,
    pooling,
    recurrent,
    shape,
    space,
)

OPERATORS: dict[str, operator.Operator] = (
    elementwise.OPERATORS
    | contraction.OPERATORS
    | normalization.OPERATORS
    | pooling.OPERATORS
    | shape.OPERATORS
    | space.OPERATORS
    | joining.OPERATORS
    | lookup.OPERATORS
    | ordering.OPERATORS
    | recurrent.OPERATORS
)

"""By name, as ``nodes.operator_name`` gives it; what is missing freezes what it touches."""

__all__ = ["OPERATORS"]
