"""What a figure of a plan depends on: which groups keep a model from being faster, or smaller."""

from __future__ import annotations

import numpy as np

from prunekit.plan.figures import Figure
from prunekit.plan.levers import Levers
from prunekit.types import IntArray


def shares(figure: Figure, levers: Levers, levels: IntArray) -> tuple[list[tuple[str, float]], float]:
    """The share of a figure that depends on each lever at these levels, and that on none.

    An operation between two widths counts with both of them, so the shares may add up to more than 1.

    Args:
        figure: milliseconds, bytes, MACs.
        levers: that it is told over.
        levels: ``[levers]``.

    Returns:
        (name of the lever, its share) from the largest down; and the share of what no lever changes.
    """
    whole, found = max(figure.at(levels), 1e-300), np.zeros(len(levers))
    for scope, table in figure.terms.items():
        value = float(table[tuple(int(levels[place]) for place in scope)])
        for place in scope:
            found[place] += value
    order = np.argsort(-found, kind="stable")
    named = [(levers[int(place)].name, float(found[place] / whole)) for place in order]
    return named, figure.constant / whole
