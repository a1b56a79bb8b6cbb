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

_FILES = (
    elementwise,
    contraction,
    normalization,
    pooling,
    shape,
    space,
    joining,
    lookup,
    ordering,
    recurrent,
)

OPERATORS: dict[str, operator.Operator] = {
    name: rule for file in _FILES for name, rule in file.OPERATORS.items()
}
"""By name, as ``nodes.operator_name`` gives it; what is missing freezes what it touches."""

FAMILIES: dict[str, str] = {
    name: file.__name__.rpartition(".")[2] for file in _FILES for name in file.OPERATORS
}
"""By name, the family of an operator: the file its rule is in."""

__all__ = ["FAMILIES", "OPERATORS"]
