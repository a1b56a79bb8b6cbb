"""What is known about one operator: a row of the table in ``graph.rules``."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.graph.call import Rule
from prunekit.graph.change import Step


@dataclass(frozen=True)
class Operator:
    """What is known about one operator.

    Attributes:
        label: how index labels travel through it, and what must stand or fall together.
        rewrite: recomputes its constants for the pruned graph; None = none of them depends on a width.
        moves: its output holds values of its first input, put elsewhere, so that values which point into a
            dimension still do.
    """

    label: Rule
    rewrite: Step | None = None
    moves: bool = False
