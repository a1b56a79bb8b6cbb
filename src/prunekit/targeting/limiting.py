"""What the time of a plan depends on: which groups keep a model from being faster."""

from __future__ import annotations

import numpy as np

from prunekit.targeting.costs import Costs
from prunekit.types import IntArray


def shares_of_time(costs: Costs, levels: IntArray) -> tuple[list[tuple[str, float]], float]:
    """The share of the predicted time that depends on each lever at these levels, and that on none.

    An operation between two widths counts with both of them, so the shares may add up to more than 1.

    Args:
        costs: on the target.
        levels: ``[levers]``.

    Returns:
        (name of the lever, its share) from the largest down; and the share of what no lever changes.
    """
    whole, found = costs.ms.at(levels), np.zeros(len(costs.levers))
    for scope, table in costs.ms.terms.items():
        value = float(table[tuple(int(levels[place]) for place in scope)])
        for place in scope:
            found[place] += value
    order = np.argsort(-found, kind="stable")
    named = [(costs.levers[int(place)].name, float(found[place] / whole)) for place in order]
    return named, costs.ms.constant / whole
