"""A perceptron whose cost is a closed form, with the interface of prunekit.graph.Groups."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from prunekit.types import Cost, Granularity, Group


class Perceptron:
    """Hidden layers of given widths between fixed inputs and outputs; hidden layer i may have blocks.

    ``macs = sum(kept[i] * kept[i + 1])`` and ``params = macs + sum(kept[1:])``.
    """

    def __init__(self, inputs: int, hidden: list[int], outputs: int, blocks: list[int] | None = None) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.groups = [
            Group(f"layer{i}.weight:0", Granularity.NEURON, size, block, ())
            for i, (size, block) in enumerate(zip(hidden, blocks or [1] * len(hidden), strict=True))
        ]
        self.fingerprint = f"perceptron {inputs} {hidden} {outputs}"
        self.calls = 0

    def __iter__(self):
        return iter(self.groups)

    def cost(self, keep=None) -> Cost:
        self.calls += 1
        kept = [int(keep[g.name].sum()) if keep and g.name in keep else g.size for g in self.groups]
        return self.cost_of(kept)

    def cost_of(self, kept) -> Cost:
        widths = [self.inputs, *kept, self.outputs]
        macs = sum(a * b for a, b in itertools.pairwise(widths))
        params = macs + sum(widths[1:])
        return Cost(params=params, macs=macs, param_bytes=4 * params)

    def scores(self, seed: int = 0, levels: int | None = None) -> dict[str, np.ndarray]:
        """Random scores; ``levels`` = draw from so few values that ties are everywhere."""
        draw = np.random.default_rng(seed)
        return {
            g.name: (draw.random(g.size) if levels is None else draw.integers(0, levels, g.size)).astype(
                np.float32
            )
            for g in self.groups
        }

    def near(self, scope, scores=None, *, least=None, round_to=1):
        """By place: for each layer the counts that lie near what the scope promises there.

        From the definition, in exact fractions: within 4 units, a quarter of the group at most, of the
        common share (uniform) or of where the ranking stands (global), or next to it.
        """
        least = least or [group.blocks for group in self.groups]
        allowed = [
            [
                count
                for count in range(g.size, 0, -g.blocks)
                if count == g.size or (count >= low and count % round_to == 0)
            ]
            for g, low in zip(self.groups, least, strict=True)
        ]
        few = [min(Fraction(4), Fraction(g.size, 4)) for g in self.groups]
        if scope == "uniform":
            ends = {
                1 - (count + side) / g.size
                for g, counts, units in zip(self.groups, allowed, few, strict=True)
                for count in counts
                for side in (-units, Fraction(0), units)
            }
            shares = sorted(end for end in ends if 0 <= end <= 1)
            between = [(one + other) / 2 for one, other in itertools.pairwise(shares)]
            for share in (*shares, *between):
                wishes = [g.size * (1 - share) for g in self.groups]
                yield [
                    near_wish(counts, wish, units)
                    for counts, wish, units in zip(allowed, wishes, few, strict=True)
                ]
            return
        assert round_to == 1
        for ranked in self._along_the_ranking(scores, least):
            yield [
                [count for count in counts if abs(count - at) <= max(1, units)]
                for counts, at, units in zip(allowed, ranked, few, strict=True)
            ]

    def _along_the_ranking(self, scores, least):
        """The widths as the lowest scores go, of equal ones first where the larger share is left."""
        steps = sorted(
            (float(score), Fraction(gone + 1, g.size), index)
            for index, (g, low) in enumerate(zip(self.groups, least, strict=True))
            for gone, score in enumerate(sorted(scores[g.name])[: g.size - low])
        )
        widths = [g.size for g in self.groups]
        yield tuple(widths)
        for _, _, index in steps:
            widths[index] -= 1
            yield tuple(widths)


def near_wish(counts, wish, units):
    """The counts within ``units`` of the wish, and those next to it on either side."""
    above = [count for count in counts if count >= wish][-1:]
    below = [count for count in counts if count <= wish][:1]
    return [count for count in counts if abs(count - wish) <= units or count in above + below]


@pytest.fixture(scope="session")
def perceptron():
    return Perceptron
