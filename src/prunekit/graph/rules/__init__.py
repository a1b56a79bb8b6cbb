"""The operator rules, one file per family, in one closed table."""

from prunekit.graph import label
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

RULES: dict[str, label.Rule] = (
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
