"""The operator rules, one file per family, in one closed table."""

from prunekit.graph import call
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
)

RULES: dict[str, call.Rule] = (
    elementwise.RULES
    | contraction.RULES
    | normalization.RULES
    | pooling.RULES
    | shape.RULES
    | joining.RULES
    | lookup.RULES
    | ordering.RULES
    | recurrent.RULES
)

__all__ = ["RULES"]
